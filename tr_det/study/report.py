"""The report of a study: a Markdown table, and JSON with the numbers of every seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tr_det.core.transition import AUTO
from tr_det.runtime.files import write_json, write_text
from tr_det.study.history import History

Row = dict[str, Any]
"""``setting``, and lists with a number for each seed under the keys of `COLUMNS`."""

COLUMNS = {
    "accuracy": "accuracy, %",
    "difference": "paired difference from {compared}",
    "lambda": "lambda found",
    "tracking error": "mean abs(K - R) / R_0, %",
    "last TR over first target": "K at the end / R_0, %",
}


def row_of(setting: str, histories: Sequence[History]) -> Row:
    """Return the row of a setting from its runs, one for each seed."""
    row: Row = {"setting": setting, "accuracy": [h.final_accuracy for h in histories]}
    if len(histories[0].running):
        if histories[0].config.tr.factor == AUTO:
            row["lambda"] = [h.factor for h in histories]
        row["tracking error"] = [100 * h.tracking_error() for h in histories]
        row["last TR over first target"] = [
            100 * h.running.mean()[-1].item() / h.first_target for h in histories
        ]
    return row


def add_differences(rows: Sequence[Row]) -> None:
    """Add to all rows but the first how far each seed's accuracy is from the first row's."""
    for row in rows[1:]:
        pairs = zip(row["accuracy"], rows[0]["accuracy"], strict=True)
        row["difference"] = [accuracy - first for accuracy, first in pairs]


def table(rows: Sequence[Row], compared: str = "") -> str:
    """Return rows as a Markdown table of means and standard deviations over seeds.

    Args:
        rows: of the study.
        compared: what the differences are from.
    """
    columns = [key for key in COLUMNS if any(key in row for row in rows)]
    titles = " | ".join(COLUMNS[key] for key in columns).format(compared=compared)
    lines = [f"| setting | {titles} |", "| --- |" + " --- |" * len(columns)]
    for row in rows:
        cells = [
            spread(row[key], ".4f" if key == "lambda" else ".2f") if key in row else "-"
            for key in columns
        ]
        lines.append(f"| {row['setting']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return mean and sample standard deviation."""
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


def write_report(
    folder: Path, details: Mapping[str, Any], rows: Sequence[Row], compared: str
) -> str:
    """Write NAME.json and NAME.md, NAME being the study in ``details``; return the Markdown."""
    made = ", ".join(f"{key} {value}" for key, value in details.items())
    text = f"{table(rows, compared)}\n\n{made}"
    write_json(folder / f"{details['study']}.json", {**details, "rows": rows})
    write_text(folder / f"{details['study']}.md", text + "\n")
    return text
