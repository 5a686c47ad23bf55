"""Optimizer and learning-rate schedule of a config."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase as fnmatch
from typing import Any

import torch
from torch import nn

from tr_det import core
from tr_det.classification.config import ClassifierConfig, check
from tr_det.core import tr_param_groups, without_transition
from tr_det.core.optim.groups import Group
from tr_det.core.transition.schedule import TargetSchedule


def build_optimizer(
    config: ClassifierConfig, model: nn.Module, total_steps: int
) -> torch.optim.Optimizer:
    """Build ``solver.optimizer``; scales have their own learning rate and no decay.

    Raises:
        ValueError: a value out of range, by its key.
    """
    solver = config.solver
    groups = tr_param_groups(
        model,
        lr=solver.lr,
        weight_decay=solver.weight_decay,
        scale_lr_factor=solver.scale_lr_factor,
    )
    for glob in solver.no_decay:
        named = any(fnmatch(name, glob) for name, _ in model.named_parameters())
        check(
            "solver.no_decay", glob, named, f"a glob over names of {config.model.name}'s parameters"
        )
    groups = [part for group in groups for part in _without_decay(solver.no_decay, model, group)]
    options = {"lr": solver.lr, "weight_decay": solver.weight_decay, **_own_options(config)}
    if not solver.scheduled:
        kind = getattr(torch.optim, solver.plain_name)
        plain: torch.optim.Optimizer = kind(without_transition(groups), **options)
        return plain
    try:
        scheduled: torch.optim.Optimizer = getattr(core, solver.optimizer)(
            groups, total_steps=total_steps, **options, **_transition_options(config)
        )
    except ValueError as error:
        text = str(error)
        raise ValueError(
            text.replace("tr_", "tr.", 1) if text.startswith("tr_") else text
        ) from None
    return scheduled


def _without_decay(patterns: Sequence[str], model: nn.Module, group: Group) -> list[Group]:
    """Return the group in two if globs name some of its parameters."""
    names = {p: name for name, p in model.named_parameters()}
    free = {p for p in group["params"] if any(fnmatch(names[p], glob) for glob in patterns)}
    decayed = [p for p in group["params"] if p not in free]
    parts = [
        {**group, "params": decayed},
        {**group, "params": [p for p in group["params"] if p in free], "weight_decay": 0.0},
    ]
    return [part for part in parts if part["params"]]


def build_scheduler(
    config: ClassifierConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the learning rate's course, one of fvcore's by update."""
    warmup = config.solver.warmup
    allowed = f"below the run's {total_steps} updates"
    check("solver.warmup", warmup, warmup < total_steps, allowed)
    course = TargetSchedule(config.solver.schedule, total_steps, warmup)
    # A function, because LambdaLR would put the state of a callable object into checkpoints.
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: course(step))


def _own_options(config: ClassifierConfig) -> dict[str, Any]:
    solver = config.solver
    if solver.plain_name == "SGD":
        return {"momentum": solver.momentum, "nesterov": solver.nesterov}
    if solver.plain_name == "RMSprop":
        return {"momentum": solver.momentum}
    if solver.plain_name == "Adagrad":
        return {}
    return {"betas": solver.betas}


def _transition_options(config: ClassifierConfig) -> dict[str, Any]:
    tr = config.tr
    return {
        "tr_factor": tr.factor,
        "tr_momentum": None if tr.momentum == -1 else tr.momentum,
        "tr_schedule": tr.schedule or config.solver.schedule,
        "tr_warmup": tr.warmup,
        "tr_final": tr.final,
        "tr_update": tr.update,
        "tr_signal": tr.signal,
        "tr_granularity": tr.granularity,
        "tr_gain": tr.gain or None,
        "tr_decay": tr.decay,
        "tr_nonfinite": tr.nonfinite,
    }
