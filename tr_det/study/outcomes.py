"""How a run has ended: what its folder says, or another study that made the same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tr_det.runtime.files import write_json
from tr_det.runtime.results import RESULTS, Results
from tr_det.study.cells import Cell
from tr_det.study.measures import measure
from tr_det.study.sides import SIDES

DONE, DIVERGED, FAILED = "done", "diverged", "failed"
"""How a run can end. One that diverged would do so again, one that failed might not."""

_FAILED = "failed.json"


@dataclass(frozen=True)
class Outcome:
    """How a run has ended.

    Attributes:
        state: `DONE`, `DIVERGED` or `FAILED`.
        value: of the study's metric; None unless done.
        results: what the run has written.
        measures: the study's further measures, by name; those that the run has.
        error: last line of what a run that failed has said.
        origin: the study.json that it comes from; "" where the folder is here.
        path: where the folder was when that was written.
    """

    state: str
    value: float | None = None
    results: Results = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    origin: str = ""
    path: Path | None = None


class Outcomes:
    """How runs of a study have ended, looked up once each.

    Args:
        folder: of the study.
        metric: which is compared.
        measures: further ones.
        elsewhere: outcomes of runs made elsewhere, by identity.
    """

    def __init__(
        self,
        folder: Path,
        metric: str,
        measures: tuple[str, ...] = (),
        elsewhere: Mapping[str, Outcome] | None = None,
    ) -> None:
        self.folder, self.metric, self.measures = folder, metric, measures
        self.elsewhere = elsewhere or {}
        self._seen: dict[str, Outcome | None] = {}

    def __call__(self, cell: Cell) -> Outcome | None:
        """Return how a run has ended, None if it has not, here or elsewhere."""
        return self.here(cell) or self.elsewhere.get(cell.identity)

    def here(self, cell: Cell) -> Outcome | None:
        """Return how a run in this study's folder has ended."""
        if cell.identity not in self._seen:
            self._seen[cell.identity] = self._read(cell)
        return self._seen[cell.identity]

    def files(self, cell: Cell) -> Outcome | None:
        """Return how a run has ended whose files others can read, None if there are none.

        Those of another study on this machine are linked into this one's folder, if it is there.
        """
        other = self.elsewhere.get(cell.identity)
        found = self.here(cell)
        if found is not None or other is None or other.path is None or not other.path.is_dir():
            return found
        if self.folder.is_dir():
            (self.folder / cell.name).symlink_to(other.path.resolve())
            return self.look_again(cell)
        return other

    def look_again(self, cell: Cell) -> Outcome | None:
        """Return how a run has ended that may have done so since it was looked up."""
        self._seen.pop(cell.identity, None)
        return self.here(cell)

    def failed(self, cell: Cell, state: str, error: str) -> None:
        """Note that a run has failed; one that diverged is never tried again."""
        if state == DIVERGED:
            write_json(cell.folder(self.folder) / _FAILED, {"state": state, "error": error})
        self._seen[cell.identity] = Outcome(state, error=error)

    def _read(self, cell: Cell) -> Outcome | None:
        folder = cell.folder(self.folder)
        results = _json(folder / RESULTS)
        if results:
            value = SIDES[cell.side].value(results, self.metric)
            found = {name: measure(name, folder, results) for name in self.measures}
            known = {name: number for name, number in found.items() if number is not None}
            return Outcome(DONE, value, results, known)
        note = _json(folder / _FAILED)
        return Outcome(DIVERGED, error=note["error"]) if note else None


def _json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds, {} where there is none that is whole."""
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
