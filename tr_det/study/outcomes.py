"""How a run has ended, as its folder says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tr_det.runtime.files import write_json
from tr_det.runtime.results import RESULTS, Results
from tr_det.study.adopt import ORIGIN, Elsewhere
from tr_det.study.cells import RUN, Cell
from tr_det.study.record import STUDY
from tr_det.study.sides import SIDES

DONE, DIVERGED, FAILED = "done", "diverged", "failed"
"""How a run can end. One that diverged would do so again, one that failed might not."""

_FAILED = "failed.json"


@dataclass(frozen=True)
class Outcome:
    """How a run has ended.

    Attributes:
        state: `DONE`, `DIVERGED` or `FAILED`.
        value: of the study's metric; None unless done, and of a supporting run without it.
        results: what the run has written.
        error: last line of what a run that failed has said.
        origin: the study.json that it was taken from; "" if it was made here.
        has_files: whether others can start from it: not where its results alone were taken.
    """

    state: str
    value: float | None = None
    results: Results = field(default_factory=dict)
    error: str = ""
    origin: str = ""
    has_files: bool = True


class Outcomes:
    """How runs of a study have ended, looked up once each.

    Args:
        folder: of the study.
        metric: which is compared.
        elsewhere: runs that count where this study has not begun them.
    """

    def __init__(self, folder: Path, metric: str, elsewhere: Elsewhere | None = None) -> None:
        self.folder, self.metric = folder, metric
        self.elsewhere = elsewhere or Elsewhere(())
        self._seen: dict[str, Outcome | None] = {}

    def __call__(self, cell: Cell) -> Outcome | None:
        """Return how a run has ended, None if it has not."""
        if cell.identity not in self._seen:
            self._seen[cell.identity] = self._read(cell)
        return self._seen[cell.identity]

    def files(self, cell: Cell) -> Outcome | None:
        """Return how a run has ended, None also where its files are not here."""
        found = self(cell)
        return found if found is None or found.has_files else None

    def look_again(self, cell: Cell) -> Outcome | None:
        """Return how a run has ended that may have done so since it was looked up."""
        self._seen.pop(cell.identity, None)
        return self(cell)

    def prepare(self, cell: Cell) -> None:
        """Let a run be made here: forget what was taken from elsewhere."""
        folder = cell.folder(self.folder)
        if folder.is_symlink():
            folder.unlink()
        elif (folder / ORIGIN).is_file():
            (folder / RESULTS).unlink(missing_ok=True)
            (folder / ORIGIN).unlink()
        self._seen.pop(cell.identity, None)

    def failed(self, cell: Cell, state: str, error: str) -> None:
        """Note that a run has failed; one that diverged is never tried again."""
        if state == DIVERGED:
            write_json(cell.folder(self.folder) / _FAILED, {"state": state, "error": error})
        self._seen[cell.identity] = Outcome(state, error=error)

    def _read(self, cell: Cell) -> Outcome | None:
        folder = cell.folder(self.folder)
        found = None if folder.exists() else self.elsewhere.look(cell.identity)
        if found is not None:
            results, has_files = found
            return Outcome(DONE, self._value(cell, results), results, has_files=has_files)
        results = _json(folder / RESULTS)
        if not results:
            note = _json(folder / _FAILED)
            return Outcome(DIVERGED, error=note["error"]) if note else None
        origin = _origin(folder)
        return Outcome(
            DONE,
            self._value(cell, results),
            results,
            origin=origin.get("study", ""),
            has_files=folder.is_symlink() or not origin,
        )

    def _value(self, cell: Cell, results: Results) -> float | None:
        """Return what a run is compared by; None of a supporting run that has no such metric."""
        try:
            return SIDES[cell.side].value(results, self.metric)
        except ValueError:
            if cell.kind == RUN:
                return None
            raise


def _origin(folder: Path) -> dict[str, Any]:
    """Return what origin.json holds, or would of a folder that is another study's.

    A study below the working folder is named from there: its place on this machine is of no use to
    anybody else.
    """
    if not folder.is_symlink():
        return _json(folder / ORIGIN)
    path, here = folder.resolve().parent / STUDY, Path.cwd()
    return {"study": str(path.relative_to(here) if path.is_relative_to(here) else path)}


def _json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds, {} where there is none that is whole."""
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
