"""What a run gave, beside what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tr_det.study.page.content import Block, Cell, Column, Folded, Row, Section, Table
from tr_det.study.page.recorded import DETECTION, RecordedRun, read_run
from tr_det.study.page.scale import number

COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")
PER_CLASS = "AP-"
START, BASELINE = "the start", "the baseline"

Compared = tuple[str, Mapping[str, float]]
"""A name and the metrics of what a run is compared with."""


def start_of(run: RecordedRun) -> RecordedRun | None:
    """Return the run that this one's weights came from, if it is there."""
    weights = str(run.results.get("paths", {}).get("start") or "")
    folder = Path(weights).parent
    if not weights or not (folder / "results.json").is_file() or folder == run.folder:
        return None
    try:
        return read_run(folder)
    except (OSError, ValueError):
        return None


def compared_with(run: RecordedRun, other: RecordedRun | None, role: str) -> list[Compared]:
    """Return what a run is compared with.

    Args:
        run: of the demo, its own first phases count.
        other: a run.
        role: of that one, `START` or `BASELINE`.
    """
    rows: list[Compared] = []
    if run.demo and role == START:
        rows.append(("full precision, the start", _boxes(run.demo["fp"])))
        rows.append((f"{run.bits_name} before training", _boxes(run.demo["before_qat"])))
    if other is not None:
        rows.append((f"{other.bits_name} {other.optimizer}, {role}", other.metrics()))
    return rows


def _boxes(metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"bbox/{key}": value for key, value in metrics.items() if value is not None}


def lead(
    run: RecordedRun, name: str, value: float | None, where: str, compared: Sequence[Compared]
) -> list[str]:
    """Return the answer in a sentence or two.

    Args:
        run: the run.
        name: of what it is judged by.
        value: of that; None before an evaluation.
        where: the test set.
        compared: with what.
    """
    unit = " %" if name == "accuracy" else ""
    made = f"after {run.evaluated:,} updates"
    if value is None:
        state = "It was not evaluated" if run.results else "It has not ended"
        return [f"{state}; {run.updates:,} updates are recorded."]
    texts = [f"{name[:1].upper()}{name[1:]} {value:.2f}{unit} on {where} {made}"]
    key = next((k for k in run.metrics() if k.rpartition("/")[2] == name), name)
    for label, metrics in compared:
        if key in metrics:
            more = value - metrics[key]
            way = "above" if more >= 0 else "below"
            texts.append(f"{abs(more):.2f} {way} {label} ({metrics[key]:.2f})")
    texts = [f"{', '.join(texts)}."]
    if not run.results:
        texts.append(f"The run has not ended: {run.updates:,} updates are recorded.")
    return [" ".join(texts)]


def results_section(run: RecordedRun, compared: Sequence[Compared]) -> Section:
    """Return all metrics of a run beside those of the others, and AP by class."""
    own = run.metrics()
    names = [key for key in own if not key.rpartition("/")[2].startswith(PER_CLASS)]
    if run.side == DETECTION:
        order = {key: place for place, key in enumerate(COCO)}
        names.sort(key=lambda key: (key.partition("/")[0], order.get(key.rpartition("/")[2], 99)))
    if not own:
        return Section("results", "Results", ["This run has no evaluation yet."])
    rows = [
        Row([Cell(label), *(number_cell(metrics.get(key)) for key in names)])
        for label, metrics in compared
    ]
    rows.append(
        Row(
            [
                Cell(f"{run.bits_name} {run.optimizer}, this run"),
                *(number_cell(own[k]) for k in names),
            ],
            "own" if rows else "",
        )
    )
    columns = [Column("model", numeric=False), *(Column(_short(key, names)) for key in names)]
    blocks: list[Block] = [Table("Results", columns, rows, sortable=False)]
    classes = [key for key in own if key.rpartition("/")[2].startswith(PER_CLASS)]
    if len(classes) > 1:
        blocks.append(_class_table(classes, own, compared))
    return Section("results", "Results", blocks=blocks)


def _class_table(
    classes: Sequence[str], own: Mapping[str, float], compared: Sequence[Compared]
) -> Block:
    others = [(label, metrics) for label, metrics in compared if classes[0] in metrics]
    rows = [
        Row(
            [
                Cell(key.rpartition(PER_CLASS)[2]),
                number_cell(own[key]),
                *(number_cell(metrics.get(key)) for _, metrics in others),
            ]
        )
        for key in classes
    ]
    columns = [Column("class", numeric=False), Column("this run")]
    columns += [Column(label) for label, _ in others]
    table = Table("AP by class", columns, rows, filters=[])
    return Folded("AP by class", [table], note=f"{len(classes)} classes")


def number_cell(value: float | None, digits: int = 0) -> Cell:
    """Return a number's cell: with two decimals, or so many significant digits."""
    if value is None:
        return Cell("–")
    plain = not digits and (abs(value) >= 1 or value == 0)
    return Cell(f"{value:.2f}" if plain else number(value, digits or 3), sort=value)


def _short(key: str, keys: Sequence[str]) -> str:
    """Return a metric's name without its group, if there is one group only."""
    groups = {name.rpartition("/")[0] for name in keys}
    return key.rpartition("/")[2] if len(groups) == 1 else key.replace("/", " ")
