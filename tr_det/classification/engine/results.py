"""Rows of the table that a run ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.runtime.files import write_json

RESULTS = "results.json"
Row = dict[str, Any]


def row_of(
    config: ClassifierConfig,
    result: dict[str, float],
    *,
    optimizer: str,
    megabytes: float,
    updates: int,
    seconds: float,
) -> Row:
    """Return a model's row; ``result`` is what its evaluation gave."""
    return {
        "model": config.model.name,
        "bits": config.quant.bits.upper(),
        "optimizer": optimizer,
        **result,
        "megabytes": megabytes,
        "updates": updates,
        "seconds": seconds,
        "folder": config.run.output_dir,
    }


def write_results(folder: str | Path, rows: list[Row]) -> None:
    """Write the rows of a run to its folder."""
    write_json(Path(folder) / RESULTS, rows)


def read_results(folder: str | Path) -> list[Row]:
    """Return what `write_results` has written."""
    rows: list[Row] = json.loads((Path(folder) / RESULTS).read_text())
    return rows


def table(rows: list[Row]) -> str:
    """Return rows as text."""
    head = f"{'model':<20}{'bits':>7}{'optimizer':>11}{'top-1':>8}{'top-5':>8}{'loss':>8}"
    lines = [f"{head}{'weight MB':>11}{'updates':>10}{'seconds':>9}"]
    for row in rows:
        lines.append(
            f"{row['model']:<20}{row['bits']:>7}{row['optimizer']:>11}{row['accuracy']:>8.2f}"
            f"{row['top5']:>8.2f}{row['loss']:>8.3f}{row['megabytes']:>11.3f}"
            f"{row['updates']:>10,}{row['seconds']:>9.0f}"
        )
    rule = "-" * len(lines[0])
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])
