"""Scalars of a run: metrics.json (one JSON object per line, as in Detectron2) and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.json"


class MetricsWriter:
    """Appends records; a resumed run first drops what the stopped one wrote past its checkpoint.

    Args:
        folder: where the files go; made if needed.
        start: first iteration of this run.
    """

    def __init__(self, folder: str | Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = Path(folder) / METRICS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_records(self.path) if row["iteration"] < start]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._board: Any = SummaryWriter(str(folder), purge_step=start)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Write one iteration's scalars; NaN, which JSON lacks, is left out."""
        finite = {key: value for key, value in scalars.items() if math.isfinite(value)}
        with self.path.open("a") as file:
            file.write(json.dumps({"iteration": iteration, **finite}) + "\n")
        for key, value in finite.items():
            self._board.add_scalar(key, value, iteration)

    def close(self) -> None:
        """Flush and close."""
        self._board.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return one record per iteration, in their order; the last value that was written counts.

    A resumed run repeats the iterations since its checkpoint. Lines that a crash cut short are
    left out.
    """
    records: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.setdefault(record["iteration"], {}).update(record)
    return [records[iteration] for iteration in sorted(records)]
