"""A study as its study.json tells it: rows, groups of rows that are compared, and their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tr_det.study.outcomes import DONE
from tr_det.study.page.recorded import RecordedRun, bits_from, read_run
from tr_det.study.record import STUDY, Record, RowEntry, RunEntry, read_record

Key = tuple[str, ...]
"""The labels of a row, one for each axis."""


class Group(NamedTuple):
    """Rows that are compared with one another: all labels are alike but the baseline's axes'.

    Attributes:
        name: what they share; "" if they are all rows.
        rows: in the study's order.
        best: the one with the largest mean; None before the first run's end.
        baseline: what the others are compared with; None without one.
    """

    name: str
    rows: list[RowEntry]
    best: RowEntry | None
    baseline: RowEntry | None


@dataclass(frozen=True)
class Studied:
    """A study.

    Attributes:
        folder: of its study.json.
        record: what that holds.
    """

    folder: Path
    record: Record

    @property
    def axes(self) -> list[str]:
        """Names of the axes."""
        return list(self.record["axes"])

    @property
    def rows(self) -> list[RowEntry]:
        """Rows of the table."""
        return list(self.record["rows"])

    @property
    def metric(self) -> str:
        """Name of what is compared, without its group."""
        return str(self.record["metric"]).rpartition("/")[2]

    def groups(self) -> list[Group]:
        """Return the rows by what they share."""
        baseline = self.record["baseline"] or {}
        shared = [axis for axis in self.axes if axis not in baseline] if baseline else []
        found: dict[Key, list[RowEntry]] = {}
        for row in self.rows:
            found.setdefault(tuple(row["labels"][axis] for axis in shared), []).append(row)
        return [
            Group(
                ", ".join(labels),
                rows,
                max((r for r in rows if r["n"]), key=lambda r: r["mean"], default=None),
                next(
                    (r for r in rows if baseline and baseline.items() <= r["labels"].items()), None
                ),
            )
            for labels, rows in found.items()
        ]

    def cells_of(self, row: RowEntry) -> list[RunEntry]:
        """Return the runs of a row that have ended, by seed."""
        cells = [cell for cell in self.record["cells"] if cell["labels"] == row["labels"]]
        return [cell for cell in cells if cell["state"] == DONE]

    def run_of(self, row: RowEntry, seed: int | None = None) -> RecordedRun | None:
        """Return the run of a row with a seed, or of the first seed whose folder is here.

        None where there is no such folder.
        """
        for cell in self.cells_of(row):
            if seed is not None and cell["seed"] != seed:
                continue
            try:
                return read_run(self.folder / cell["folder"])
            except (OSError, ValueError):
                continue
        return None

    def cell_of(self, run: RecordedRun) -> RunEntry:
        """Return the entry of a run that `run_of` has returned."""
        cells = self.record["cells"]
        return next(cell for cell in cells if self.folder / cell["folder"] == run.folder)


def read_studied(folder: Path) -> Studied | None:
    """Return the study in a folder, None if there is none.

    Raises:
        ValueError: its study.json is damaged.
    """
    path = folder / STUDY
    return Studied(folder, read_record(path)) if path.is_file() else None


def key_of(row: RowEntry) -> Key:
    """Return a row's labels."""
    return tuple(row["labels"].values())


def name_of(row: RowEntry) -> str:
    """Return a row's labels as text."""
    return ", ".join(row["labels"].values())


def bits_of(study: Studied, row: RowEntry, run: RecordedRun | None) -> tuple[int, int] | None:
    """Return bits of weights and inputs of a row's runs, None where nothing tells them."""
    if run is not None:
        return run.bits
    for cell in study.record["cells"]:
        if cell["labels"] == row["labels"]:
            settings = cell["settings"]
            if "quant.bits" in settings:
                return bits_from(settings["quant.bits"])
            both = settings.get("MODEL.QUANT.WEIGHT_BITS"), settings.get("MODEL.QUANT.ACT_BITS")
            if all(type(bits) is int for bits in both):
                return both  # type: ignore[return-value]
    return None


def bits_axis(study: Studied, bits: Mapping[Key, tuple[int, int]]) -> str:
    """Return the axis whose labels stand for different bits, "" if there is none."""
    for axis in study.axes:
        by_label: dict[str, set[tuple[int, int]]] = {}
        for row in study.rows:
            key = tuple(row["labels"].values())
            if key in bits:
                by_label.setdefault(row["labels"][axis], set()).add(bits[key])
        single = all(len(found) == 1 for found in by_label.values())
        if len(by_label) > 1 and single and len(set().union(*by_label.values())) == len(by_label):
            return axis
    return ""
