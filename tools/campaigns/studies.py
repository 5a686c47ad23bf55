"""A study that is killed, again and again, and started again until it ends."""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import run_study
import yaml
from campaigns import tiny
from campaigns.attempts import Attempt
from campaigns.children import Child, Ended, in_child, stopped
from campaigns.compare import differences

from tr_det.runtime.processes import end_with_parent
from tr_det.study import jobs
from tr_det.study.child import wait_for
from tr_det.study.jobs import OUTPUT

PROMISE = (
    "a killed study leaves no process behind, ends with status 0 when it is started again, and "
    "with the table, the choices and the runs of one that was not killed, bit for bit"
)
ATTEMPTS = 7
MINUTES = 15.0
MOST_KILLS = 5
LIMIT = 300.0
STUDY, OUT, PIDS = "study.yaml", "study", "pids.txt"

_KEYS: dict[str, Any] = {
    "SIDE": "classification",
    "CONFIG": tiny.CLASSIFIER,
    "SETTINGS": {"model.weights": "{fp}/model_final.pth", "solver.iterations": 6},
    "SEEDS": [0, 1],
    "RUNS": {
        "fp": {
            "CONFIG": tiny.CLASSIFIER,
            "SEEDS": [0],
            "SETTINGS": {
                "quant.bits": "FP",
                "solver.optimizer": "SGD",
                "solver.methods": [],
                "data.hold_out": 0.3,  # it must not have seen what the search chooses by
            },
        }
    },
    "AXES": {
        "method": {
            "SGD": {"solver.optimizer": "SGD"},
            "SGDT": {"solver.optimizer": "SGDT"},
        },
    },
    "BASELINE": {"method": "SGD"},
    "SEARCH": [
        {
            "WHERE": {"method": "SGD"},
            "KEYS": {"solver.lr": [0.01, 0.05]},
            "SETTINGS": {"data.hold_out": 0.3},
        }
    ],
}


class Shared(NamedTuple):
    """The files of all attempts, and what was not killed.

    Attributes:
        files: their folder.
        reference: the study's folder.
        seconds: that it took.
    """

    files: Path
    reference: Path
    seconds: float


class Forked:
    """A run in a process that need not import what this one has; in the place of `jobs.Process`."""

    def __init__(self, words: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        del environment  # this process' own
        folder.mkdir(parents=True, exist_ok=True)
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words, folder)
        with (folder.parent / PIDS).open("a") as file:
            file.write(f"{self.pid}\n")

    def status(self) -> int | None:
        """Return the exit status, None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def stop(self) -> None:
        """Let it write a checkpoint and end."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> None:
        """Return when it has ended."""
        while self.status() is None:
            time.sleep(0.01)

    @staticmethod
    def _run(words: list[str], folder: Path) -> None:
        status: Any = 1
        try:
            os.setsid()
            output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(output, 1)
            os.dup2(output, 2)
            end_with_parent()
            wait_for(folder)
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status if isinstance(status, int) else int(status is not None))


def prepare(folder: Path) -> Shared:
    """Make the study without a kill."""
    files = tiny.prepare(folder)
    (files / STUDY).write_text(yaml.safe_dump(_KEYS, sort_keys=False))
    began = time.perf_counter()
    tiny.require(in_child(start(files / STUDY), folder / "reference", LIMIT))
    return Shared(files, folder / "reference" / OUT, time.perf_counter() - began)


def attempt(shared: Shared, rng: random.Random, number: int, folder: Path) -> Attempt:
    """Kill a study at random moments, then let it end."""
    problems: list[str] = []
    wanted, kills = rng.randint(2, MOST_KILLS), 0
    for _ in range(wanted):
        ended = _run(shared.files, folder, rng.uniform(0, 0.7 * shared.seconds))
        if ended.status != -9:
            break
        kills += 1
        problems += _left_behind(folder / OUT)
    ended = _run(shared.files, folder, None)
    if ended.status != 0 or ended.crash:
        problems.append(f"did not end: {ended.crash or ended.last_line}")
    else:
        problems += _unlike(folder / OUT, shared.reference)
    return Attempt(
        what=f"{kills} kills",
        outcome="as undisturbed" if not problems else "damaged",
        broken=problems[0] if problems else "",
        counts={"kills of the study": kills},
        notes={"problems": problems},
    )


def start(study: Path, *arguments: object) -> Callable[[], Any]:
    """Return the start of tools/run_study.py whose runs are forked, into the folder `OUT`."""

    def call() -> None:
        jobs.Process = Forked  # type: ignore[misc, assignment]
        words = [str(study), "--output", OUT, *map(str, arguments)]
        sys.argv = ["run_study.py", *words]
        run_study.main(words)

    return call


def _run(files: Path, folder: Path, seconds: float | None) -> Ended:
    """Start the study and kill it after a while, unless that is None or it ends before."""
    folder.mkdir(parents=True, exist_ok=True)
    child = Child(start(files / STUDY), folder, folder)
    with stopped(child):
        if seconds is not None:
            time.sleep(seconds)
            child.kill()
        return child.wait(LIMIT)


def _left_behind(study: Path) -> list[str]:
    """Return whether runs outlive a killed study by more than a few seconds."""
    path = study / PIDS
    pids = [int(line) for line in path.read_text().split()] if path.is_file() else []
    end = time.perf_counter() + 10
    while any(_lives(pid) for pid in pids):
        if time.perf_counter() > end:
            return ["a run outlives the study"]
        time.sleep(0.1)
    return []


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _unlike(study: Path, reference: Path) -> list[str]:
    """Return how a study differs from the undisturbed one."""
    problems = []
    if (study / "table.csv").read_bytes() != (reference / "table.csv").read_bytes():
        problems.append("another table")
    ours, theirs = (json.loads((path / "study.json").read_text()) for path in (study, reference))
    for part in ("rows", "searches", "cells", "runs"):
        if _without_times(ours[part]) != _without_times(theirs[part]):
            problems.append(f"study.json: other {part}")
    for cell in [*ours["cells"], *ours["runs"]]:
        found = differences(study / cell["folder"], reference / cell["folder"])
        found = [problem for problem in found if not problem.startswith((OUTPUT, "config.yaml"))]
        problems += [f"{cell['folder']}: {problem}" for problem in found]
    return problems


def _without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_times(part) for key, part in tree.items() if key != "seconds"}
    return [_without_times(part) for part in tree] if isinstance(tree, list) else tree
