"""Making the runs of a study that are missing, several at once, until all have ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tr_det.runtime.cli import DIVERGED as DIVERGED_STATUS
from tr_det.runtime.cli import MISTAKE
from tr_det.runtime.run_folder import numbered_checkpoints
from tr_det.runtime.signals import end_if_asked
from tr_det.study.cells import CANDIDATE, Cell
from tr_det.study.definition import Study
from tr_det.study.jobs import Job, Place, last_line
from tr_det.study.outcomes import DIVERGED, DONE, FAILED, Outcomes
from tr_det.study.plan import Plan
from tr_det.study.sides import SIDES
from tr_det.study.states import Clock, needed

PAUSES = (2.0, 20.0)
"""Seconds before a run that failed is started again; after the last it has failed."""
_POLL = 0.2


@dataclass
class _Trials:
    """What came of the starts of a run."""

    failures: int = 0
    not_before: float = 0.0
    began: float = 0.0


class Runner:
    """Makes the runs of a study.

    Args:
        study: what is compared.
        folder: of the study, which no other one may write to.
        outcomes: how its runs have ended.
        place: where they are started.
        clock: is told how long they took.
        tell: called whenever a run has started or ended, with this object.
        said: called with what a user should read.

    Attributes:
        plan: the runs, as far as they are known.
        running: those that go on, by identity.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        outcomes: Outcomes,
        place: Place,
        clock: Clock,
        tell: Callable[[Runner], None],
        said: Callable[[str], None],
    ) -> None:
        self.study, self.folder, self.outcomes = study, folder, outcomes
        self.place, self.clock, self.tell, self.said = place, clock, tell, said
        self.plan = self._planned()
        self.running: dict[str, tuple[Cell, Job]] = {}
        self._trials: dict[str, _Trials] = {}

    def run(self) -> None:
        """Make the missing runs; return when all have ended or failed.

        Signals must be held (`tr_det.runtime.signals.held`): at one, the runs write checkpoints.
        """
        for cell in self.plan.cells():  # which a killed study may not have done
            outcome = self.outcomes(cell)
            if outcome is not None and outcome.state == DONE:
                self._tidy(cell)
        ended = False
        try:
            while self._start_some(tell=ended) or self.running:
                time.sleep(_POLL)
                ended = self._ended()
                if ended:
                    self.plan = self._planned()
                end_if_asked(self._stop)
        finally:
            self._stop()
            self.tell(self)

    def _planned(self) -> Plan:
        """Return the runs as far as they are known; those that are done elsewhere are brought."""
        plan = Plan(self.study, self.outcomes)
        for cell in plan.cells():
            if self.outcomes.elsewhere.bring(cell.identity, self.folder):
                self.outcomes.look_again(cell)
        return plan

    def _start_some(self, tell: bool) -> bool:
        """Start what can be; return whether a run can be started now or later.

        Args:
            tell: also where none is started.
        """
        soon = False
        for cell in needed(self.plan, self.outcomes):
            trials = self._trials.setdefault(cell.identity, _Trials())
            if cell.identity in self.running or self._has_failed(cell):
                continue
            if not all(self._is_there(other) for other in cell.needs.values()):
                continue
            soon = True
            if len(self.running) < self.place.slots and time.monotonic() >= trials.not_before:
                self.outcomes.prepare(cell)
                job = self.place.start(cell, self.folder)
                self.running[cell.identity] = (cell, job)
                trials.began = time.monotonic()
                tell = True
        if tell:
            self.tell(self)
        return soon

    def _is_there(self, cell: Cell) -> bool:
        outcome = self.outcomes.files(cell)
        return outcome is not None and outcome.state == DONE

    def _has_failed(self, cell: Cell) -> bool:
        outcome = self.outcomes(cell)
        return outcome is not None and outcome.state in (FAILED, DIVERGED)

    def _ended(self) -> bool:
        """Take note of the runs that have ended; return whether one has."""
        ended = [(cell, job.status()) for cell, job in self.running.values()]
        for cell, status in ended:
            if status is not None:
                del self.running[cell.identity]
                self._note(cell, status)
        return any(status is not None for _, status in ended)

    def _note(self, cell: Cell, status: int) -> None:
        trials = self._trials[cell.identity]
        outcome = self.outcomes.look_again(cell) if status == 0 else None
        if outcome is not None:
            if not trials.failures:
                self.clock.ended(outcome, time.monotonic() - trials.began)
            self._tidy(cell)
            return
        folder = cell.folder(self.folder)
        error = last_line(folder) or f"exit status {status}"
        if status == DIVERGED_STATUS:
            self.outcomes.failed(cell, DIVERGED, error)
            self.said(f"{cell.name} diverged: {error}")
            return
        trials.failures += 1
        if status in (0, MISTAKE) or trials.failures > len(PAUSES):
            self.outcomes.failed(cell, FAILED, error)
            self.said(f"{cell.name} failed: {error}")
            return
        pause = PAUSES[trials.failures - 1]
        trials.not_before = time.monotonic() + pause
        self.said(f"{cell.name} ended with status {status}, goes on in {pause:.0f} s: {error}")

    def _tidy(self, cell: Cell) -> None:
        """Remove the checkpoints that a run has gone beyond, and all of a search's.

        Where a study says how many to keep, its runs have done so.
        """
        folder = cell.folder(self.folder)
        if folder.is_symlink():
            return  # another study's
        if cell.kind == CANDIDATE:
            paths = [*folder.glob("model_*.pth")]
        else:
            paths = [] if cell.sets(SIDES[cell.side].keep) else numbered_checkpoints(folder)
        for path in paths:
            path.unlink(missing_ok=True)

    def _stop(self) -> None:
        for _, job in self.running.values():
            job.stop()
        for cell, job in self.running.values():
            job.wait()
            self.outcomes.look_again(cell)
        self.running.clear()
