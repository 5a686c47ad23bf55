"""The optimizer's step alone, and its part in a whole W4A4 step: torch's against TR-scheduled."""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch
from benchmarks.measure import Call, Settings, alternate, ratio
from benchmarks.networks import Task, variants

from tr_det.core import SGDT, AdamT, tr_param_groups, without_transition

TITLE = "Optimizer step, plain and TR-scheduled, and the whole step around it"
NETWORKS = ("resnet20", "retinanet-r18-half", "retinanet-r50")
BYTES = {"SGD": 20, "SGDT": 22, "Adam": 28, "AdamT": 30}
"""Per weight, at least: parameter, gradient and moments read, parameter and moments written, and
the codes read and written."""
COPY_BYTES = 8
STEPS = 10**9
"""Length of the run that TR-scheduled optimizers are told: the target stays where it starts."""


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Return one row per network, optimizer and scope."""
    names = NETWORKS[:-1] if settings.tiny else NETWORKS
    return [row for name in names for row in _rows_of(name, settings)]


def _rows_of(name: str, settings: Settings) -> list[dict[str, Any]]:
    task = variants(name, settings.device, settings.tiny)["tr_det W4A4"]
    table = []
    for family, base in (("SGD", "SGD (foreach)"), ("Adam", "Adam (foreach)")):
        labels = [
            label for label in _LABELS[family] if name != NETWORKS[-1] or "fused" not in label
        ]
        tasks = {label: Task(copy.deepcopy(task.model), task.loss) for label in labels}
        built = {label: _optimizer(label, tasks[label]) for label in tasks}
        alone: dict[str, Call] = {}
        whole: dict[str, Call] = {}
        for label, optimizer in built.items():
            tasks[label].forward().backward()
            alone[label] = optimizer.step
            whole[label] = _whole_step(tasks[label], optimizer)
        weights = torch.cat([p.detach().flatten() for p in task.model.parameters()])
        # Into memory that is there: a clone would measure the first touch of pages on a CPU.
        target = torch.empty_like(weights)
        alone["copy"] = lambda target=target, weights=weights: target.copy_(weights)
        for scope, calls in (("optimizer alone", alone), ("whole step", whole)):
            samples = alternate(calls, settings)
            for label, times in samples.items():
                if label == "copy":
                    continue
                median = statistics.median(times)
                row = {
                    "network": name,
                    "scope": scope,
                    "optimizer": label,
                    "median, ms": median * 1e3,
                    "over foreach": ratio(samples, label, base),
                }
                if scope == "optimizer alone":
                    copies = BYTES[label.split()[0]] / COPY_BYTES
                    floor = copies * statistics.median(samples["copy"])
                    row["share of copy bandwidth, %"] = 100 * floor / median
                table.append({**row, "_seconds": times})
    return table


_LABELS = {
    "SGD": ("SGD (foreach)", "SGD (fused)", "SGDT"),
    "Adam": ("Adam (foreach)", "Adam (fused)", "AdamT"),
}


def _optimizer(label: str, task: Task) -> torch.optim.Optimizer:
    # A learning rate of almost nothing: the network must not drift while it is timed.
    groups, lr = tr_param_groups(task.model, lr=1e-8, weight_decay=1e-4), 1e-8
    momentum = {"momentum": 0.9} if label.startswith("SGD") else {}
    if label in ("SGDT", "AdamT"):
        scheduled = SGDT if label == "SGDT" else AdamT
        return scheduled(groups, lr=lr, total_steps=STEPS, **momentum)
    torch_class = torch.optim.SGD if label.startswith("SGD") else torch.optim.Adam
    kind = "fused" if "fused" in label else "foreach"
    return torch_class(without_transition(groups), lr=lr, **momentum, **{kind: True})


def _whole_step(task: Task, optimizer: torch.optim.Optimizer) -> Call:
    def step() -> None:
        optimizer.zero_grad()
        task.forward().backward()
        optimizer.step()

    return step
