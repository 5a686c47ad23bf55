"""Where runs are started: processes of this machine, each with its share of cores or GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from tr_det.core.errors import check
from tr_det.study.cells import Cell
from tr_det.study.sides import SIDES

OUTPUT = "output.txt"
"""What a run says goes there, in its folder."""
MOST_JOBS = 100
"""Jobs of a cluster at once unless --workers says how many."""
_PATIENCE = 60.0
"""Seconds in which a run that is asked to end may write its checkpoint."""


class Job(Protocol):
    """A run that has been started."""

    def status(self) -> int | None:
        """Return its exit status, None while it goes on."""

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""

    def wait(self) -> None:
        """Return when it has ended after `stop`."""


class Place(Protocol):
    """Where runs are started."""

    slots: int  # at once

    def start(self, cell: Cell, folder: Path) -> Job:
        """Start a run of the study in a folder."""


@dataclass(frozen=True)
class Share:
    """What each run gets.

    Attributes:
        workers: runs at once.
        threads: CPU threads of each.
        gpus: GPUs of each; 0 where none is used.
    """

    workers: int
    threads: int
    gpus: int


def share(workers: int | None, threads: int, gpus: int | None, *, is_told: bool = False) -> Share:
    """Return what each run gets on this machine.

    Args:
        workers: runs at once; None: as many as cores, or GPUs, are there for.
        threads: of each.
        gpus: of each; None: one where there are any.
        is_told: nothing is run here, so there may be more than this machine has.

    Raises:
        ConfigError: more than there are.
    """
    cores, there = len(os.sched_getaffinity(0)), torch.cuda.device_count()

    def check_between(key: str, value: int, least: int, most: int, what: str) -> None:
        fits = least <= value and (is_told or value <= most)
        check(key, value, fits, f"from {least} to {most}{what}")

    check_between("--threads", threads, 1, cores, ", this machine's cores")
    gpus = min(1, there) if gpus is None else gpus
    check_between("--gpus", gpus, 0, there, ", this machine's GPUs")
    most = max(1, there // gpus if gpus else cores // threads)
    workers = most if workers is None else workers
    what = f"{there} GPUs; --gpus 0 uses its cores" if gpus else f"{cores} cores"
    check_between("--workers", workers, 1, most, f": this machine has {what}")
    return Share(workers, threads, gpus)


def cluster_share(workers: int | None, threads: int, gpus: int | None) -> Share:
    """Return what each job of a cluster gets; arguments as for `share`.

    Raises:
        ConfigError: less than there can be.
    """
    given = {"--workers": workers, "--threads": threads, "--gpus": gpus}
    for key, value in given.items():
        least = 0 if key == "--gpus" else 1
        check(key, value, value is None or value >= least, f"at least {least}")
    return Share(workers or MOST_JOBS, threads, gpus or 0)


def command(cell: Cell, study: Path, tools: Path, gpus: int = 0) -> list[str]:
    """Return the words after ``python`` that start a run, or go on with it.

    Args:
        cell: the run.
        study: the study's folder.
        tools: folder of the tools.
        gpus: of the run.
    """
    side = SIDES[cell.side]
    before, after = side.processes(gpus) if gpus > 1 else ([], [])
    words = [*before, str(tools / side.tool), *after, "--config-file", str(cell.config)]
    return [*words, "--resume", *cell.pairs(study)]


class Processes:
    """Processes of this machine, which end with this one.

    Args:
        tools: folder of the tools.
        share: what each run gets.
    """

    def __init__(self, tools: Path, share: Share) -> None:
        self.tools, self.share, self.slots = tools, share, share.workers
        self._jobs: list[Process | None] = [None] * share.workers

    def start(self, cell: Cell, folder: Path) -> Job:
        """Start a run; there must be a free slot."""
        slot = next(
            i for i, job in enumerate(self._jobs) if job is None or job.status() is not None
        )
        gpus = self.share.gpus
        environment = {**os.environ, **threads(self.share.threads)}
        if gpus:
            own = range(slot * gpus, (slot + 1) * gpus)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(_visible()[i] for i in own)
        words = command(cell, folder, self.tools, gpus)
        job = Process(words, cell.folder(folder), environment)
        self._jobs[slot] = job
        return job


class Process:
    """A run in a process of its own."""

    def __init__(self, words: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        child = [sys.executable, "-m", "tr_det.study.child", str(os.getpid()), str(folder)]
        with (folder / OUTPUT).open("ab") as output:
            self._process = subprocess.Popen(
                [*child, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # a terminal's signals are passed on by `stop`
            )

    def status(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Let it write a checkpoint and end."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Return when it has ended."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def threads(number: int) -> dict[str, str]:
    """Return the environment that gives a process that many threads."""
    return {name: str(number) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def last_line(folder: Path) -> str:
    """Return the last line that a run has said."""
    path = folder / OUTPUT
    text = path.read_text(errors="replace") if path.is_file() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _visible() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
