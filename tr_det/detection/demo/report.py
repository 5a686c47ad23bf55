"""What the demo says when it is done: a text table, and the transition rates of its log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tr_det.core.methods.telemetry import LAYERS
from tr_det.export.runtimes import TITLES

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
PHASES = {
    "dataset": "dataset",
    "fp_training": "FP training",
    "fp": "FP",
    "before_qat": "before QAT",
    "qat": "QAT",
    "after_qat": "after QAT",
    "export": "export",
}
"""The demo's phases in their order -> their names in the table."""


def tr_series(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the transition-rate curves of a run; empty ones without TR scheduling.

    Args:
        records: of metrics.json.

    Returns:
        {"iteration", "target", "running", "talr",
        "layers": {layer: {"iteration", "running", "talr"}}}, lists of equal length. The target is
        NaN as long as it is being sought.
    """
    rows = [row for row in records if "tr/running" in row]
    suffix = "/running"
    keys = [key for key in (rows[0] if rows else ()) if key.endswith(suffix)]
    layers = [key[len(LAYERS) : -len(suffix)] for key in keys if key != "tr/running"]

    def columns(prefix: str, *names: str) -> dict[str, list[Any]]:
        curves = {name: [row.get(f"{prefix}/{name}", math.nan) for row in rows] for name in names}
        return {"iteration": [row["iteration"] for row in rows], **curves}

    return {
        **columns("tr", "target", "running", "talr"),
        "layers": {name: columns(f"{LAYERS}{name}", "running", "talr") for name in layers},
    }


def results_table(results: Mapping[str, Any]) -> str:
    """Format the demo's results: AP and weight storage, final TR, seconds per phase.

    Args:
        results: {"fp", "before_qat", "after_qat": Detectron2's bbox metrics (0-100);
            "tr": see `tr_series`, with "initial_target" if it was known in advance;
            "storage_mb": {"fp", "quantized"}; "seconds": {phase: seconds, "total": seconds};
            "weight_bits"; "act_bits"; "optimizer";
            "export": see `tr_det.detection.demo.export.export_phase`; may be missing}.
    """
    bits = f"W{results['weight_bits']}A{results['act_bits']}"
    names = {
        "fp": "FP",
        "before_qat": f"{bits} before QAT",
        "after_qat": f"{bits} after QAT ({results['optimizer']})",
    }
    storage, seconds = results["storage_mb"], results["seconds"]
    rows = [["model", *METRICS, "weight MB"]]
    for key, name in names.items():
        megabytes = storage["fp" if key == "fp" else "quantized"]
        rows.append([name, *_metrics(results[key]), f"{megabytes:.2f}"])
    exported = results.get("export")
    if exported:
        rows = [[*row, "-"] for row in rows]
        rows[0][-1] = "file MB"
        for row in exported["rows"]:
            name = f"{bits} exported ({TITLES[row['runtime']]})"
            cells = (f"{storage['quantized']:.2f}", f"{row['file_mb']:.2f}")
            rows.append([name, *_metrics(row["metrics"]), *cells])
    gains = (
        f"{results[key]['AP'] - results['fp']['AP']:+.1f} {PHASES[key]}"
        for key in ("before_qat", "after_qat")
    )
    times = (
        f"{name} {seconds[key]:.{1 if seconds[key] < 100 else 0}f}"
        for key, name in {**PHASES, "total": "total"}.items()
        if key in seconds
    )
    return "\n".join(
        [
            *_grid(rows),
            f"AP against FP    {', '.join(gains)}",
            f"weights          {storage['fp']:.2f} MB at FP, {storage['quantized']:.2f} MB "
            f"quantized: {storage['fp'] / storage['quantized']:.1f} times smaller",
            f"transition rate  {_tr_note(results['tr'], results['optimizer'])}",
            *(_export_notes(exported) if exported else []),
            f"seconds          {', '.join(times)}",
        ]
    )


def _metrics(found: Mapping[str, float]) -> list[str]:
    return [f"{found[metric]:.1f}" for metric in METRICS]


def _export_notes(exported: Mapping[str, Any]) -> list[str]:
    """Return the times and the verdict of the proof, a line each."""
    times = [
        f"{TITLES[row['runtime']]} {row['ms']:.2f} ({row['format']}), FP32 "
        f"{row['float32_ms']:.2f}: {row['over_float32']:.2f} of its time"
        for row in exported["rows"]
    ]
    failures = exported["failures"]
    compared = f"{exported['codes']:,} codes in {exported['images']} images"
    verdict = f"holds: {compared}" if not failures else f"FAILS: {'; '.join(failures[:3])}"
    lines = [f"ms per image     {times[0]}"] if times else []
    lines += [" " * 17 + time for time in times[1:]]
    return [*lines, f"proof            {verdict}"]


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the first column left and the others right, under a ruled header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True))
        lines.append("   ".join((f"{name:<{widths[0]}}", *cells)))
    rule = "-" * len(lines[0])
    return [rule, lines[0], rule, *lines[1:], rule]


def _tr_note(tr: Mapping[str, Any], optimizer: str) -> str:
    targets = [target for target in tr["target"] if math.isfinite(target)]
    if not targets:
        return f"{optimizer}: no target was logged"
    initial, running = tr.get("initial_target", targets[0]), tr["running"][-1]
    return (
        f"target {_percent(targets[-1])}, running {_percent(running)} at the end, "
        f"{100 * running / initial:.1f}% of the initial target {_percent(initial)}"
    )


def _percent(share: float) -> str:
    """Format a share (0-1) in percent with three significant digits."""
    percent = 100 * share
    if percent == 0:
        return "0%"
    if abs(percent) < 1e-4:
        return "<0.0001%"
    return f"{percent:.{max(0, 2 - math.floor(math.log10(abs(percent))))}f}%"
