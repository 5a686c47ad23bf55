"""A whole training step with each quantizer, against full precision."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Settings, alternate, kept_megabytes, timings
from benchmarks.networks import each_quantizer
from benchmarks.train_step import BASE, step_of

TITLE = "Training step with each quantizer, W4A4, against full precision, float32"
NETWORK = "retinanet-r18-half"


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Return one row per quantizer."""
    tasks = each_quantizer(NETWORK, settings.device, settings.tiny)
    samples = alternate({name: step_of(task) for name, task in tasks.items()}, settings)
    kept = {name: kept_megabytes(task.forward, settings.device) for name, task in tasks.items()}
    return [
        {"quantizer": name, **timing, "kept for backward, MB": kept[name]}
        for name, timing in timings(samples, BASE, f"over {BASE}").items()
    ]
