"""Run a tool of Detectron2's several times, as a process with DETECTRON2_ENV_MODULE would.

    env_process.py TOOL DATASET_FOLDER JSON  (a list of command lines)

The datasets of the tests are registered in between; one process, because importing takes longest.
"""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import detectron2  # noqa: F401  before anything of ours, as in the tools
import torch

torch.set_num_threads(1)
assert "tr_det.detection.env" in sys.modules, "Detectron2 did not import the environment module"

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
tool, folder, command_lines = sys.argv[1:]
tiny.register_tiny_scenes(folder)
for arguments in json.loads(command_lines):
    sys.argv = [tool, *arguments]
    runpy.run_path(tool, run_name="__main__")
