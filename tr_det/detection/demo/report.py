"""What the demo says when it is done: a text table, a strict JSON file, TR curves from the log.

Nothing here knows torch or Detectron2; the numbers come in as plain dictionaries, so a
half-finished run (missing metrics, NaN, nulls from JSON) prints as well as a complete one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
WIDTH = 100
MISSING = "-"

# Phases in the order of the demo; others follow in the order given, "total" comes last.
_PHASES = (
    "install",
    "dataset",
    "fp_train",
    "fp_eval",
    "calibration",
    "before_eval",
    "qat",
    "after_eval",
)
_MEANS = ("target", "running", "talr")
_PER_LAYER = ("running", "talr")
# A record of metrics.json is flat, so a whole one has no brace inside.
_FLAT_OBJECT = re.compile(r"\{[^{}]*\}")


# -------------------------------------------------------------------------- metrics.json, TR series


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads Detectron2's `metrics.json`: one JSON object per line, appended to by resumed runs.

    A resumed run repeats the iterations since its checkpoint: the last record of an iteration wins,
    as a whole. A run that was killed while writing leaves half a record, with which the next run's
    first record may share a line: the half is dropped, the whole one kept.

    Args:
        path: the file.

    Returns:
        The records sorted by "iteration". NaN and infinities stay floats.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    rows: dict[int, dict[str, Any]] = {}
    unreadable = 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        records = _records(line)
        if not records and line.strip() and number < len(lines):
            unreadable += 1
        for record in records:
            rows[int(record["iteration"])] = record
    if unreadable:
        logger.warning("%s: ignored %d unreadable line(s)", path, unreadable)
    return [rows[iteration] for iteration in sorted(rows)]


def _records(line: str) -> list[dict[str, Any]]:
    """Returns a line's whole records: one, none when it is cut, two when a newline was lost."""
    try:
        found = [json.loads(line)]
    except ValueError:
        found = []
        for text in _FLAT_OBJECT.findall(line):
            with contextlib.suppress(ValueError):
                found.append(json.loads(text))
    return [row for row in found if isinstance(row, dict) and _finite(row.get("iteration"))]


def tr_series(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Picks the transition-rate curves out of `metrics.json` records.

    Detectron2 writes one record per iteration at which something was logged, so the means and the
    layers may lie in different records; each layer therefore has its own "iteration". Lists are as
    long as the "iteration" beside them (NaN where a record lacks a value), but a quantity that was
    never logged is an empty list: plain SGD has `"target": []`.

    Args:
        rows: what `read_metrics` returns; records without any TR scalar are skipped.

    Returns:
        {"iteration", "target", "running", "talr",
        "layers": {layer: {"iteration", "running", "talr"}}}.
    """
    means: list[tuple[int, dict[str, float]]] = []
    layers: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for row in rows:
        iteration = int(row["iteration"])
        mean: dict[str, float] = {}
        layer_values: dict[str, dict[str, float]] = {}
        for key, value in row.items():
            prefix, _, rest = key.partition("/")
            if prefix == "tr" and rest in _MEANS:
                mean[rest] = _number(value)
            elif prefix == "tr_layers":
                layer, _, name = rest.rpartition("/")
                if layer and name in _PER_LAYER:
                    layer_values.setdefault(layer, {})[name] = _number(value)
        if mean:
            means.append((iteration, mean))
        for layer, values in layer_values.items():
            layers.setdefault(layer, []).append((iteration, values))
    return {
        **_columns(means, _MEANS),
        "layers": {layer: _columns(points, _PER_LAYER) for layer, points in layers.items()},
    }


def _columns(
    points: Sequence[tuple[int, dict[str, float]]], names: Sequence[str]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"iteration": [iteration for iteration, _ in points]}
    for name in names:
        logged = any(name in values for _, values in points)
        columns[name] = [values.get(name, math.nan) for _, values in points] if logged else []
    return columns


# ---------------------------------------------------------------------------------------- the table


def results_table(results: Mapping[str, Any]) -> str:
    """Formats the demo's results: a table of AP and weight storage, final TR, seconds per phase.

    Everything in `results` may be missing, None or NaN and then shows as "-".

    Args:
        results: {"fp", "before_qat", "after_qat": Detectron2's bbox metrics (0-100);
            "tr": see `tr_series`, and optionally "initial_target", without which the first logged
            target counts as the initial one; "storage_mb": {"fp", "quantized"};
            "seconds": {phase: seconds}; "weight_bits"; "act_bits"; "optimizer"}.

    Returns:
        Lines of at most 100 columns, no trailing newline.
    """
    optimizer = str(results.get("optimizer") or "")
    bits = _bits_name(results)
    after = f"{bits} after QAT" + (f" ({optimizer})" if optimizer else "")
    storage = _part(results, "storage_mb")
    models = (
        ("FP", _part(results, "fp"), storage.get("fp")),
        (f"{bits} before QAT", _part(results, "before_qat"), storage.get("quantized")),
        (after, _part(results, "after_qat"), storage.get("quantized")),
    )
    rows = [["model", *METRICS, "weight MB"]]
    for name, metrics, megabytes in models:
        rows.append([name, *(_fixed(metrics.get(m), 1) for m in METRICS), _fixed(megabytes, 2)])
    lines = _grid(rows)

    notes = [("AP against FP", _ap_note(results)), ("weights", _storage_note(storage))]
    notes.append(("transition rate", _tr_note(_part(results, "tr"), optimizer)))
    notes.append(("seconds", _seconds_note(_part(results, "seconds"))))
    label_width = max(len(label) for label, _ in notes) + 2
    for label, text in notes:
        # A hard space, which keeps "before eval 12.3" on one line, becomes a plain one here.
        wrapped = textwrap.wrap(text, WIDTH - label_width, break_on_hyphens=False) or [MISSING]
        heads = [label, *[""] * (len(wrapped) - 1)]
        for head, part in zip(heads, wrapped, strict=True):
            lines.append(f"{head:<{label_width}}{part}".replace("\N{NO-BREAK SPACE}", " "))
    return "\n".join(lines)


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns the first column left, the others right, under a ruled header, within `WIDTH`."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    gap = 3
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - gap * (len(widths) - 1))
    rule = "-" * (sum(widths) + gap * (len(widths) - 1))
    lines = []
    for row in rows:
        name = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 3] + "..."
        numbers = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append((" " * gap).join((f"{name:<{widths[0]}}", *numbers)))
    return [rule, lines[0], rule, *lines[1:], rule]


def _ap_note(results: Mapping[str, Any]) -> str:
    fp = _number(_part(results, "fp").get("AP"))
    parts = []
    for key, when in (("before_qat", "before QAT"), ("after_qat", "after QAT")):
        difference = _number(_part(results, key).get("AP")) - fp
        parts.append(f"{f'{difference:+.1f}' if math.isfinite(difference) else MISSING} {when}")
    return ", ".join(parts)


def _storage_note(storage: Mapping[str, Any]) -> str:
    fp, quantized = _number(storage.get("fp")), _number(storage.get("quantized"))
    if not (math.isfinite(fp) and math.isfinite(quantized) and quantized > 0):
        return MISSING
    return f"{fp:.2f} MB at FP, {quantized:.2f} MB quantized: {fp / quantized:.1f} times smaller"


def _tr_note(tr: Mapping[str, Any], optimizer: str) -> str:
    targets, running = _finite_values(tr.get("target")), _finite_values(tr.get("running"))
    end = f"running {_percent(running[-1] if running else math.nan)} at the end"
    if not targets:
        # TR optimizers are called like the plain one plus a T; without a target it went unlogged.
        scheduled = optimizer.endswith("T")
        why = "no target was logged" if scheduled else f"plain {optimizer or 'SGD'}: no target"
        return f"{why}, {end}"
    initial = _number(tr.get("initial_target"))
    initial = initial if math.isfinite(initial) else targets[0]
    share = running[-1] / initial if running and initial > 0 else math.nan
    return (
        f"target {_percent(targets[-1])}, {end}, "
        f"{_percent(share, 1)} of the initial target {_percent(initial)}"
    )


def _seconds_note(seconds: Mapping[str, Any]) -> str:
    others = [key for key in seconds if key not in _PHASES and key != "total"]
    order = [key for key in (*_PHASES, *others, "total") if key in seconds]
    parts = []
    for key in order:
        value = _number(seconds[key])
        label = key.replace("fp_", "FP_").replace("_", " ").replace("qat", "QAT")
        text = f"{label} {_fixed(value, 1 if value < 100 else 0)}"
        parts.append(text.replace(" ", "\N{NO-BREAK SPACE}"))
    return ", ".join(parts)


def _percent(share: float, digits: int | None = None) -> str:
    """Formats a share (0-1) in percent: `digits` decimals, or three significant digits."""
    if not math.isfinite(share):
        return MISSING
    percent = 100 * share
    if digits is not None:
        return f"{percent:.{digits}f}%"
    if percent == 0:
        return "0%"
    if abs(percent) < 1e-4:
        return "<0.0001%"
    return f"{percent:.{max(0, 2 - math.floor(math.log10(abs(percent))))}f}%"


def _fixed(value: Any, digits: int) -> str:
    number = _number(value)
    return f"{number:.{digits}f}" if math.isfinite(number) else MISSING


def _bits_name(results: Mapping[str, Any]) -> str:
    weight, act = results.get("weight_bits"), results.get("act_bits")
    return "quantized" if weight is None or act is None else f"W{weight}A{act}"


def _part(results: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return results.get(key) or {}


def _finite_values(values: Iterable[Any] | None) -> list[float]:
    return [_number(value) for value in (() if values is None else values) if _finite(value)]


def _finite(value: Any) -> bool:
    return math.isfinite(_number(value))


def _number(value: Any) -> float:
    """Returns `value` as a float; NaN for None and for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
