"""The optimizer's step, alone and within a whole W4A4 step: torch's against TR-scheduled."""

from __future__ import annotations

import copy
import statistics
from functools import partial
from typing import Any

import torch
from benchmarks.measure import Call, Settings, alternate, timings
from benchmarks.networks import Task, variants

from tr_det.core import SGDT, AdamT, tr_param_groups, without_transition

TITLE = "Optimizer step, plain and TR-scheduled, and the whole step around it"
NETWORKS = ("resnet20", "retinanet-r18-half", "retinanet-r50")
BYTES = {"SGD": 20, "SGDT": 22, "Adam": 28, "AdamT": 30}
"""Least number for each weight: parameter, gradient and moments read, parameter and moments
written, and the codes read and written."""
COPY_BYTES = 8
STEPS = 10**9
"""Length of the run for TR-scheduled optimizers: so long that the target does not change."""
CONTESTANTS = (
    ("SGD (foreach)", "SGD (fused)", "SGDT"),
    ("Adam (foreach)", "Adam (fused)", "AdamT"),
)


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Return one row per network, optimizer and scope."""
    names = NETWORKS[:-1] if settings.tiny else NETWORKS
    return [row for name in names for row in _rows_of(name, settings)]


def _rows_of(name: str, settings: Settings) -> list[dict[str, Any]]:
    task = variants(name, settings.device, settings.tiny)["tr_det W4A4"]
    weights = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    # Into existing memory: on a CPU a clone would measure the first access to its pages.
    target = torch.empty_like(weights)
    table = []
    for base, *others in CONTESTANTS:
        calls: dict[str, dict[str, Call]] = {"optimizer alone": {}, "whole step": {}}
        for label in (base, *others):
            if name == NETWORKS[-1] and "fused" in label:
                continue
            own = Task(copy.deepcopy(task.model), task.loss)
            optimizer = _optimizer(label, own)
            own.forward().backward()
            calls["optimizer alone"][label] = optimizer.step
            calls["whole step"][label] = partial(own.step, optimizer)
        calls["optimizer alone"]["copy"] = lambda: target.copy_(weights)
        for scope, contestants in calls.items():
            samples = alternate(contestants, settings)
            copies = samples.pop("copy", None)
            for label, timing in timings(samples, base, "over foreach").items():
                row = {"network": name, "scope": scope, "optimizer": label, **timing}
                if copies:
                    floor = BYTES[label.split()[0]] / COPY_BYTES * statistics.median(copies)
                    median = statistics.median(timing["_seconds"])
                    row["share of copy bandwidth, %"] = 100 * floor / median
                table.append(row)
    return table


def _optimizer(label: str, task: Task) -> torch.optim.Optimizer:
    # An almost vanishing learning rate: the network must not change while it is timed.
    groups = tr_param_groups(task.model, lr=1e-8, weight_decay=1e-4)
    options: dict[str, Any] = {"lr": 1e-8}
    if label.startswith("SGD"):
        options["momentum"] = 0.9
    if label in ("SGDT", "AdamT"):
        scheduled = SGDT if label == "SGDT" else AdamT
        return scheduled(groups, total_steps=STEPS, **options)
    options["fused" if "fused" in label else "foreach"] = True
    torch_class = torch.optim.SGD if label.startswith("SGD") else torch.optim.Adam
    return torch_class(without_transition(groups), **options)
