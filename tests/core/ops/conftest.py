"""Triton decides when it is imported whether it interprets, so its cases run as programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture
def run_cases():
    """Return a function that runs ``CASES.py DEVICE`` with environment variables."""

    def run(cases: str, device: str, **environment: str) -> None:
        path = os.pathsep.join([str(FOLDER.parents[2]), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, str(FOLDER / f"{cases}.py"), device],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    return run
