"""Implementations to choose from: built kernels or none, and Triton's, which run as programs.

Triton decides when it is imported whether it interprets.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tr_det.core.ops import affine_compiled
from tr_det.core.ops.build import library

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


@pytest.fixture(scope="module", params=["kernels", "torch operations"])
def either(request):
    """Run a test with the compiled kernels and without; skipped where they cannot be built."""
    if request.param == "kernels" and library() is None:
        pytest.skip("no C compiler")
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "kernels":
            patch.setattr(affine_compiled, "library", lambda: None)
        yield
