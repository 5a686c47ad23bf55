"""Scalars of a run: metrics.json (one JSON object per line, as in Detectron2) and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tr_det.runtime.files import write_text

METRICS = "metrics.json"

Record = dict[str, Any]


class MetricsFile:
    """Appends records; a resumed run first drops what the stopped one wrote past its checkpoint.

    Args:
        folder: where the file goes; made if needed.
        start: first iteration of this run.

    Attributes:
        before: the kept records of the iteration before, in the order of their lines.
    """

    def __init__(self, folder: str | Path, start: int = 0) -> None:
        self.path = Path(folder) / METRICS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [(line, row) for line, row in _lines(self.path) if row["iteration"] < start]
        text = "".join(f"{line}\n" for line, _ in kept)
        if not (self.path.is_file() and self.path.read_text(errors="replace") == text):
            write_text(self.path, text)
        self.before = [row for _, row in kept if row["iteration"] == start - 1]

    def write(self, iteration: int, scalars: Mapping[str, float]) -> Record:
        """Add one iteration's scalars; return those that were written: JSON has no NaN."""
        finite = {key: value for key, value in scalars.items() if math.isfinite(value)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **finite}, sort_keys=True) + "\n")
        return finite


class MetricsWriter(MetricsFile):
    """Writes records to TensorBoard as well."""

    def __init__(self, folder: str | Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(folder, start)
        self._board: Any = SummaryWriter(str(folder), purge_step=start)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> Record:
        """Add one iteration's scalars."""
        finite = super().write(iteration, scalars)
        for key, value in finite.items():
            self._board.add_scalar(key, value, iteration)
        return finite

    def close(self) -> None:
        """Flush and close."""
        self._board.close()


def read_records(path: Path) -> list[Record]:
    """Return one record per iteration, in their order; the last value that was written counts."""
    records: dict[int, Record] = {}
    for _, record in _lines(path):
        records.setdefault(record["iteration"], {}).update(record)
    return [records[iteration] for iteration in sorted(records)]


def _lines(path: Path) -> list[tuple[str, Record]]:
    """Return the lines of metrics.json and what they hold, but for damaged ones: a warning says so.

    A run that is killed or has no space left may leave half a line.
    """
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    found = [(line, _parsed(line)) for line in lines]
    kept = [(line, record) for line, record in found if record is not None]
    if len(kept) < len(lines):
        message = "%s: %d damaged lines are left out"
        logging.getLogger(__name__).warning(message, path, len(lines) - len(kept))
    return kept


def _parsed(line: str) -> Record | None:
    """Return a line's record, None unless it is an iteration and numbers."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(record, dict) and type(record.get("iteration")) is int):
        return None
    return record if all(type(value) in (int, float) for value in record.values()) else None
