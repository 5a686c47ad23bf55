"""The optimizer of a config."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase as fnmatch

import torch
from torch import nn

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.core import ConfigError, tr_param_groups, without_transition
from tr_det.core.errors import check
from tr_det.core.optim.groups import Group
from tr_det.core.optim.optimizers import make_optimizer


def build_optimizer(
    config: ClassifierConfig, model: nn.Module, total_steps: int
) -> torch.optim.Optimizer:
    """Build ``solver.optimizer``; scales have their own learning rate and no decay.

    Raises:
        ConfigError: a value out of range, by its key.
    """
    solver = config.solver
    groups = tr_param_groups(
        model,
        lr=solver.lr,
        weight_decay=solver.weight_decay,
        scale_lr_factor=solver.scale_lr_factor,
        quant_weight_lr_factor=solver.quant_weight_lr_factor,
    )
    for glob in solver.no_decay:
        named = any(fnmatch(name, glob) for name, _ in model.named_parameters())
        check(
            "solver.no_decay", glob, named, f"a glob over names of {config.model.name}'s parameters"
        )
    groups = [part for group in groups for part in _without_decay(solver.no_decay, model, group)]
    if not solver.scheduled:
        groups = without_transition(groups)
    try:
        return make_optimizer(
            solver.optimizer,
            groups,
            total_steps=total_steps,
            transition={**vars(config.tr), "schedule": config.tr.schedule or solver.schedule},
            arguments={key: getattr(solver, key) for key in ("momentum", "nesterov", "betas")},
            lr=solver.lr,
            weight_decay=solver.weight_decay,
        )
    except ConfigError as error:
        key = error.key
        name = f"tr.{key.removeprefix('tr_')}" if key.startswith("tr_") else f"solver.{key}"
        raise error.renamed(name) from None


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
