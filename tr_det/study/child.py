"""A cell's process: ends with the one that started it, and waits for what is left of another.

    python -m tr_det.study.child PARENT FOLDER PROGRAM ARGUMENT ...

A study that is killed and started again finds its runs' folders locked for as long as the dying
processes, and the loaders' workers below them, need.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from tr_det.runtime.processes import end_with_parent

_SECONDS = 15.0
"""How long a folder may be another's; then the tool says so."""


def main(arguments: list[str]) -> None:
    """Run a program in this process."""
    parent, folder, *words = arguments
    end_with_parent()
    if os.getppid() != int(parent):
        return  # it has ended while this process started
    wait_for(Path(folder))
    module = words[0] == "-m"
    sys.argv = words[1:] if module else words
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


def wait_for(folder: Path) -> None:
    """Return when no other run writes to a folder, or after `_SECONDS`."""
    end = time.monotonic() + _SECONDS
    while folder.is_dir() and time.monotonic() < end:
        try:
            with FileLock(folder / ".lock", timeout=0):
                return
        except Timeout:
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return


if __name__ == "__main__":
    main(sys.argv[1:])
