"""A whole training step (forward, backward, plain SGD): full precision against W4A4."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from benchmarks.measure import Call, Settings, alternate, kept_megabytes, peak_megabytes, timings
from benchmarks.networks import Task, variants

from tr_det.core import Quantizer, attach, tr_param_groups, without_transition

TITLE = "Training step, W4A4 against full precision, float32"
NETWORKS = ("resnet20", "retinanet-r18-half", "retinanet-r18", "retinanet-r50")
BASE = "full precision"


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Return one row per network and contestant."""
    names = ("resnet20", "retinanet-r18-half") if settings.tiny else NETWORKS
    return [row for name in names for row in _rows_of(name, settings)]


def _rows_of(name: str, settings: Settings) -> list[dict[str, Any]]:
    tasks = variants(name, settings.device, settings.tiny)
    steps = {variant: step_of(task) for variant, task in tasks.items()}
    samples = alternate(steps, settings)
    kept = {v: kept_megabytes(task.forward, settings.device) for v, task in tasks.items()}
    peak = {v: peak_megabytes(step, settings.device) for v, step in steps.items()}
    return [
        {
            "network": name,
            "what": variant,
            **timing,
            "kept for backward, MB": kept[variant],
            "kept over full precision": kept[variant] / kept[BASE],
            **({} if peak[variant] is None else {"peak, MB": peak[variant]}),
        }
        for variant, timing in timings(samples, BASE, f"over {BASE}").items()
    ]


def step_of(task: Task) -> Call:
    """Return a function that makes a step of plain SGD."""
    # An almost vanishing learning rate: the network must not change while it is timed.
    groups = without_transition(tr_param_groups(task.model, lr=1e-8))
    optimizer = torch.optim.SGD(groups, lr=1e-8, momentum=0.9)
    if any(isinstance(m, Quantizer) and m.adapts for m in task.model.modules()):
        attach([], task.model, optimizer, 10**6)
    return partial(task.step, optimizer)
