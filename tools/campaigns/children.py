"""Forked children: a process that has imported everything starts in milliseconds.

The parent must neither start threads nor run a backward pass, which a fork would not survive.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parents[1]
LOG, VALUE = "log.txt", "value.json"
ORPHANS_SECONDS = 15.0
"""How long processes of a killed one may outlive it; a data loader's workers look every 5 s."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: exit status; minus the signal's number if one ended it; None: over its time.
        output: what it printed, on both streams.
        value: what its function returned.
        seconds: that it ran.
        orphans: whether processes that it had started outlived it.
    """

    status: int | None
    output: str
    value: Any
    seconds: float
    orphans: bool = False

    @property
    def crash(self) -> str:
        """What no input may lead to: a traceback, a signal, no end; "" if nothing of the kind."""
        if self.status is None:
            return f"still running after {self.seconds:.0f} s"
        if self.status < 0:
            return f"ended by {signal.Signals(-self.status).name}"
        if "Traceback (most recent call last)" in self.output:
            return f"traceback: {self.last_line}"
        return ""

    @property
    def refused(self) -> bool:
        """Whether it ended as a tool does at a mistake, or where numbers diverged: in one line."""
        return self.status in (2, 3) and not self.crash and self.last_line.startswith("error: ")

    @property
    def last_line(self) -> str:
        """The last line that it printed."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


class Child:
    """A function in a forked process with its own session, folder, streams and log.

    Args:
        function: what to run; what it returns must fit into JSON.
        folder: its working directory, made if needed.
        files: folder of its log and value, which must exist.
    """

    def __init__(self, function: Callable[[], Any], folder: Path, files: Path) -> None:
        self.files = files
        (files / VALUE).unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        self.began = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                folder.mkdir(parents=True, exist_ok=True)
                status = _run(function, folder.resolve(), files.resolve())
            finally:  # nothing goes on in the parent's code
                os._exit(status)

    def wait(self, seconds: float) -> Ended:
        """Return how it ended; it is killed when the time is over."""
        status = self._status(seconds)
        if status is None:
            self.kill()
            self._status(ORPHANS_SECONDS)
        took = time.perf_counter() - self.began
        orphans = status is not None and self._leaves_orphans()
        self.kill_all()
        value, output = self.files / VALUE, self.files / LOG
        return Ended(
            status,
            output.read_text(errors="replace") if output.exists() else "",
            json.loads(value.read_text()) if value.exists() else None,
            took,
            orphans,
        )

    def kill(self) -> None:
        """Kill the process, as the system does when it is out of memory."""
        os.kill(self.pid, signal.SIGKILL)

    def _status(self, seconds: float) -> int | None:
        end = time.perf_counter() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.perf_counter() > end:
                return None
            time.sleep(0.002)

    def _leaves_orphans(self) -> bool:
        end = time.perf_counter() + ORPHANS_SECONDS
        while self._living():
            if time.perf_counter() > end:
                return True
            time.sleep(0.05)
        return False

    def _living(self) -> list[int]:
        """Return the processes of the session; one that has ended does not count."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            except OSError:  # has ended meanwhile
                continue
            if int(session) == self.pid and state not in "ZX":
                found.append(int(stat.parent.name))
        return found

    def kill_all(self) -> None:
        """Kill the process and what it has started."""
        for pid in self._living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def in_child(function: Callable[[], Any], folder: Path, seconds: float) -> Ended:
    """Run a function in a child, in a folder that has its log as well."""
    folder.mkdir(parents=True, exist_ok=True)
    child = Child(function, folder, folder)
    with stopped(child):
        return child.wait(seconds)


@contextmanager
def stopped(child: Child) -> Iterator[None]:
    """Leave no child behind when the parent is interrupted."""
    try:
        yield
    except BaseException:
        child.kill_all()
        raise


def _run(function: Callable[[], Any], folder: Path, files: Path) -> int:
    """Run the function as a program of its own would; return the exit status."""
    os.setsid()
    os.chdir(folder)
    log = os.open(files / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Those of the parent may be a test's.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    status = 0
    try:
        value = function()
        if value is not None:
            (files / VALUE).write_text(json.dumps(value))
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def command(tool: str, *arguments: object) -> Callable[[], Any]:
    """Return a function that runs a tool as its file's name and arguments do."""

    def call() -> None:
        path = str(TOOLS / tool)
        sys.argv = [path, *map(str, arguments)]
        runpy.run_path(path, run_name="__main__")

    return call


def without_times(text: str) -> str:
    """Return a line of output without what differs from attempt to attempt: numbers, paths."""
    return re.sub(r"\d+", "#", re.sub(r"/\S+/", "/.../", text))[:300]
