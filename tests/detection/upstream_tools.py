"""Detectron2's own training scripts, unmodified, and a process that runs them.

They are not in its wheel. ``DETECTRON2_CHECKOUT`` names a folder with a checkout of the installed
version; without it, stand-ins that make the same calls take their place.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def tool(name):
    """Return the path of one of Detectron2's tools, or of its stand-in."""
    checkout = os.environ.get("DETECTRON2_CHECKOUT")
    folder = Path(checkout, "tools") if checkout else HERE / "stand_ins"
    return folder / name


def run_tools(first, scenes, command_lines):
    """Return the output of a process with DETECTRON2_ENV_MODULE; see env_process.py."""
    done = subprocess.run(
        [sys.executable, HERE / "env_process.py", first, str(scenes), json.dumps(command_lines)],
        env={
            **os.environ,
            "DETECTRON2_ENV_MODULE": "tr_det.detection.env",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    return output
