"""A study's table, as Markdown and CSV, from what study.json holds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import Any

from tr_det.study.outcomes import DIVERGED, FAILED
from tr_det.study.record import (
    DifferenceEntry,
    Environment,
    Record,
    RowEntry,
    SearchEntry,
    candidates,
)
from tr_det.study.statistics import interval_text, mean_text, quantile

NOT_RUN = "not run"


def markdown(record: Record) -> str:
    """Return the table, what was searched, and how it was made."""
    metric, seeds = record["metric"], record["seeds"]
    parts = [f"# {record['name']}", "", f"{metric}, mean ± standard deviation over {len(seeds)} "]
    parts[-1] += f"seed{'s' * (len(seeds) > 1)} ({_listed(seeds)})" + _difference_note(record)
    parts += ["", *(_wide(record) if record["columns"] else _long(record)), ""]
    parts += _supports(record)
    for search in record["searches"]:
        parts += [_searched(search), ""]
    parts += _made(record)
    return "\n".join(parts) + "\n"


def csv_text(record: Record) -> str:
    """Return a line for each row of the table, with the values of its seeds."""
    axes, seeds = list(record["axes"]), record["seeds"]
    ends = ["mean", "std", "low", "high", "n"]
    head = [*axes, "n", "mean", "std", *[f"seed {seed}" for seed in seeds]]
    head += [f"state of seed {seed}" for seed in seeds]
    head += [f"difference {end}" for end in ends]
    chosen = list(dict.fromkeys(key for row in record["rows"] for key in row["chosen"]))
    costs = list(dict.fromkeys(key for row in record["rows"] for key in row["cost"]))
    head += [*chosen, *costs, *record["measures"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in record["rows"]:
        difference: dict[str, Any] = {**(row["difference"] or {})}
        line = [*(row["labels"][axis] for axis in axes), row["n"], row["mean"], row["std"]]
        line += [row["values"].get(str(seed)) for seed in seeds]
        line += [row["states"].get(str(seed)) for seed in seeds]
        line += [difference.get(end) for end in ends]
        line += [row["chosen"].get(key) for key in chosen]
        line += [row["cost"].get(key) for key in costs]
        line += [row["measures"].get(name) for name in record["measures"]]
        writer.writerow(line)
    return text.getvalue()


def _wide(record: Record) -> list[str]:
    """Return a table with a line for what the labels but one axis' are, and a column for those."""
    across = record["columns"]
    axes = [axis for axis in record["axes"] if axis != across]
    rows = {tuple(row["labels"].values()): row for row in record["rows"]}
    compared = {
        label
        for label in record["axes"][across]
        if any(r["difference"] for r in record["rows"] if r["labels"][across] == label)
    }
    head = list(axes)
    for label in record["axes"][across]:
        head += [label, *(["difference"] if label in compared else [])]
    lines = []
    for labels in dict.fromkeys(
        tuple(row["labels"][axis] for axis in axes) for row in record["rows"]
    ):
        own = dict(zip(axes, labels, strict=True))
        line = list(labels)
        for label in record["axes"][across]:
            whole = {**own, across: label}
            found = rows.get(tuple(whole[axis] for axis in record["axes"]))
            line.append(_value(found, record) if found else "")
            if label in compared:
                line.append(_difference(found["difference"], record) if found else "")
        lines.append(line)
    return _table(head, lines)


def _long(record: Record) -> list[str]:
    """Return a table with a line for each row, and columns for further measures."""
    compared = any(row["difference"] for row in record["rows"])
    head = [*record["axes"], record["metric"], *(["difference"] if compared else [])]
    head += record["measures"]
    lines = []
    for row in record["rows"]:
        line = [*row["labels"].values(), _value(row, record)]
        line += [_difference(row["difference"], record)] if compared else []
        line += [_number(row["measures"].get(name)) for name in record["measures"]]
        lines.append(line)
    return _table(head, lines)


def _table(head: list[str], lines: Iterable[list[str]]) -> list[str]:
    texts = [[text.replace("|", "\\|") for text in line] for line in (head, *lines)]
    texts.insert(1, ["---"] * len(head))
    return [f"| {' | '.join(line)} |" for line in texts]


def _value(row: RowEntry, record: Record) -> str:
    states = list(row["states"].values())
    others = [state for state in (DIVERGED, FAILED) if state in states]
    if row["mean"] is None:
        return ", ".join(others) or NOT_RUN
    text = mean_text(row["mean"], row["std"])
    notes = [f"n = {row['n']}"] if row["n"] < len(record["seeds"]) else []
    notes += [f"{states.count(state)} {state}" for state in others]
    return text + (f" ({', '.join(notes)})" if notes else "")


def _difference(found: DifferenceEntry | None, record: Record) -> str:
    if found is None:
        return ""
    text = f"{found['mean']:+.2f}"
    if found["low"] is not None:
        text += f" {interval_text(found['low'], found['high'])}"
    return text + (f" ({found['n']} pairs)" if found["n"] < len(record["seeds"]) else "")


def _difference_note(record: Record) -> str:
    """Return what the differences are, and how far intervals of so few seeds reach."""
    if not record["baseline"]:
        return "."
    name = ", ".join(f"{axis} {label}" for axis, label in record["baseline"].items())
    text = f"; difference from {name}, seed by seed"
    n = len(record["seeds"])
    if n < 2:
        return f"{text}: one seed, so nothing says how much of it is chance."
    reach = quantile(n - 1) / math.sqrt(n)
    text += ", with the 95 % interval of its mean (Student's t). "
    text += f"With {n} seeds it reaches {reach:.1f} standard deviations of the differences to each "
    return text + "side: where it holds 0, these seeds do not tell the two apart."


def _supports(record: Record) -> list[str]:
    lines = []
    for run in record["runs"]:
        value = run["state"] if run["value"] is None else f"{run['value']:.2f}"
        lines.append(f"- {run['labels']['run']}, seed {run['seed']}: {record['metric']} {value}")
    return ["Runs that others start from or read:", "", *lines, ""] if lines else []


def _searched(search: SearchEntry) -> str:
    """Return a list of what a search tried, the best in bold."""
    rows = "; ".join(", ".join(row.values()) for row in search["rows"])
    keys = list(search["keys"])
    tried = search["points"]
    if all(_numbers(entry["point"]) for entry in tried):
        tried = sorted(tried, key=lambda entry: entry["point"])
    best = None if search["chosen"] is None else list(search["chosen"].values())
    parts = []
    for entry in tried:
        value = entry["state"] if entry["value"] is None else f"{entry['value']:.2f}"
        text = f"{_listed(entry['point'])}: {value}"
        parts.append(f"**{text}**" if entry["point"] == best else text)
    line = f"Searched for {rows}: {' x '.join(keys)}, seed {_listed(search['seeds'])}: "
    line += "; ".join(parts) + "."
    if search["at_edge"]:
        ends = _listed(search["at_edge"])
        line += f" **The best value is at an end of what was tried of {ends}.**"
    return line


def _made(record: Record) -> list[str]:
    hours = record["hours"]
    lines = [f"`{record['command']}`", ""]
    made = "".join(f"{environment_text(each)}. " for each in record["environments"])
    made += f"{sum(hours.values()):.2f} {hours_name(record)} "
    made += f"of training ({', '.join(f'{key} {value:.2f}' for key, value in hours.items())}; "
    made += "of runs that were stopped, since they last went on)."
    runs = [*record["cells"], *record["runs"], *candidates(record)]
    others = dict.fromkeys(run["origin"] for run in runs if run["origin"])
    if others:
        made += f" Some results were taken from {', '.join(others)}."
    problems = [
        f"- {cell['folder']}: {cell['state']}: {cell['error']}"
        for cell in [*record["runs"], *record["cells"]]
        if cell["state"] in (DIVERGED, FAILED)
    ]
    return [*lines, made, *(["", *problems] if problems else [])]


def environment_text(environment: Environment) -> str:
    """Return where some of the runs were made."""
    machine, runs = environment["machine"], environment["runs"]
    where = machine.get("gpu") or machine.get("cpu") or "a machine that is not recorded"
    text = f"{runs} run{'s' * (runs > 1)} on {where}"
    if machine.get("processes", 1) > 1:
        text += f", {machine['processes']} processes"
    if machine and not machine["gpu"]:
        text += f", {machine['threads']} thread{'s' * (machine['threads'] > 1)} each"
    versions = ", ".join(f"{key} {value}" for key, value in environment["versions"].items())
    return f"{text}; {versions}" if versions else text


def hours_name(record: Record) -> str:
    """Return what the study's hours are of."""
    on_gpu = {bool(each["machine"].get("gpu")) for each in record["environments"]}
    if len(on_gpu) > 1:
        return "hours of cores and GPUs"
    return "GPU hours" if True in on_gpu else "core hours"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _numbers(point: Iterable[Any]) -> bool:
    return all(type(value) in (int, float) for value in point)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
