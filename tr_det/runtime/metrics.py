"""Scalars of a run: metrics.json (one JSON object per line, as in Detectron2) and TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "metrics.json"


class MetricsWriter:
    """Appends records; a resumed run first drops what the stopped one wrote past its checkpoint.

    Args:
        folder: where the files go; made if needed.
        start: first iteration of this run.
    """

    def __init__(self, folder: str | Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = Path(folder) / NAME
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
    """Return a file's records; of a line that a crash cut short, nothing."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
