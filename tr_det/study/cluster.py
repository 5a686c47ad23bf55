"""Runs as jobs of SLURM, or of another scheduler that submitit knows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# When it is imported it would set up logging, and close all handlers that there are.
os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
import submitit

from tr_det.core.errors import ConfigError
from tr_det.runtime.options import parse_pairs
from tr_det.study.cells import Cell
from tr_det.study.jobs import OUTPUT, Job, Share, command, threads

JOBS = "jobs"
"""Folder of submitit's files, below the study's."""
CLUSTER, SLURM = "cluster", "slurm"
"""Option that names another scheduler of submitit's than SLURM: local are processes, for trials."""
_NOTE = ".job"


def options_from(words: Sequence[str]) -> dict[str, Any]:
    """Return the options of ``--slurm``.

    >>> options_from(["partition=gpu", "timeout_min=600"])
    {'partition': 'gpu', 'timeout_min': 600}
    """
    known = {"partition": "slurm_partition", "qos": "slurm_qos", "account": "slurm_account"}
    pairs = parse_pairs(words, "--slurm")
    return {known.get(key, key): value for key, value in pairs.items()}


class Run:
    """What a job calls: a run's command, which goes on where it was when the job is requeued.

    Args:
        words: after ``python``.
        folder: of the run.
        cores: CPU threads.
    """

    def __init__(self, words: list[str], folder: Path, cores: int) -> None:
        self.words, self.folder, self.cores = words, folder, cores

    def __call__(self) -> int:
        """Run; return the exit status."""
        self.folder.mkdir(parents=True, exist_ok=True)
        child = [sys.executable, "-m", "tr_det.study.child", str(os.getpid()), str(self.folder)]
        with (self.folder / OUTPUT).open("ab") as output:
            return subprocess.call(
                [*child, *self.words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **threads(self.cores)},
            )

    def checkpoint(self) -> Any:
        """Return what is submitted when the scheduler takes the machine away: the same again."""
        return submitit.helpers.DelayedSubmission(self)


class Submitted:
    """A job of the scheduler."""

    def __init__(self, job: Any, note: Path) -> None:
        self._job, self._note = job, note

    def status(self) -> int | None:
        """Return the exit status, None while it waits or runs; 1 where the job was lost."""
        if not self._job.done():
            return None
        self._note.unlink(missing_ok=True)
        return 1 if self._job.exception() is not None else int(self._job.result())

    def stop(self) -> None:
        """Cancel it."""
        self._job.cancel(check=False)

    def wait(self) -> None:
        """Do not wait: a cancelled job ends by itself, and its successor waits for the folder."""
        self._note.unlink(missing_ok=True)


class Cluster:
    """Jobs of a scheduler. Those that a killed study has left are found again.

    Args:
        tools: folder of the tools.
        folder: of the study.
        words: ``KEY=VALUE`` options of submitit's executor; those of SLURM alone begin with
            ``slurm_``.
        share: what each job gets.

    Raises:
        ConfigError: the scheduler is not here, or there is no such option.
    """

    def __init__(self, tools: Path, folder: Path, words: Sequence[str], share: Share) -> None:
        self.tools, self.share, self.slots = tools, share, share.workers
        options = options_from(words)
        self._jobs = folder.resolve() / JOBS
        usual: dict[str, Any] = {
            "cpus_per_task": share.threads,
            "timeout_min": 24 * 60,
            "name": folder.name,
        }
        usual |= {"gpus_per_node": share.gpus} if share.gpus else {}
        scheduler = options.pop(CLUSTER, SLURM)
        try:
            self._executor = submitit.AutoExecutor(self._jobs, cluster=scheduler)
            self._executor.update_parameters(**{**usual, **options})
        except (RuntimeError, NameError, AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())
            allowed = f"options that submitit takes here: {reason}"
            raise ConfigError("--slurm", " ".join(words), allowed) from None

    def start(self, cell: Cell, folder: Path) -> Job:
        """Submit a run, unless its job is still there."""
        own = cell.folder(folder)
        note = own / _NOTE
        if note.is_file() and self._executor.cluster == SLURM:
            left: Any = submitit.SlurmJob(self._jobs, note.read_text().strip())
            if not left.done(force_check=True):
                return Submitted(left, note)
        words = command(cell, folder, self.tools, self.share.gpus)
        job = self._executor.submit(Run(words, own.absolute(), self.share.threads))
        own.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{job.job_id}\n")
        return Submitted(job, note)
