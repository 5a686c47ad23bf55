"""Optimizers by name for Detectron2: plain torch ones and their TR-scheduled twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.registry import Registry
from torch import nn

from tr_det import core
from tr_det.core.errors import ConfigError, check_among
from tr_det.core.optim.optimizers import OPTIMIZERS, make_optimizer
from tr_det.detection.solver.methods import attach_from
from tr_det.detection.solver.replay import replayed_talr

OPTIMIZER_REGISTRY = Registry("OPTIMIZER")
OPTIMIZER_REGISTRY.__doc__ = """
Registry of optimizers, chosen by ``cfg.SOLVER.OPTIMIZER``.

A registered object is called with ``(cfg, groups)`` and returns the optimizer. Its attribute
``transition`` says whether the groups must hold one group per quantized weight (with its
quantizer), or ordinary ones.
"""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``cfg.SOLVER.OPTIMIZER`` and attach ``SOLVER.METHODS``, clipping and the curves to it.

    Groups: first Detectron2's own for all ordinary parameters (norm and bias options respected);
    then, for optimizers with TR scheduling or a learning rate of their own, one per quantized
    weight; last the quantizers' parameters at ``SCALE_LR_FACTOR`` times the learning rate.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """
    name = cfg.SOLVER.OPTIMIZER
    check_among("SOLVER.OPTIMIZER", name, [key for key, _ in OPTIMIZER_REGISTRY])
    builder = OPTIMIZER_REGISTRY.get(name)
    solver, decay = cfg.SOLVER, cfg.SOLVER.WEIGHT_DECAY_BIAS
    groups = optimizer_groups(
        model,
        transition=builder.transition,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=None if decay is None else float(decay),
        scale_lr_factor=solver.SCALE_LR_FACTOR,
        quant_weight_lr_factor=solver.QUANT_WEIGHT_LR_FACTOR,
    )
    optimizer: torch.optim.Optimizer = builder(cfg, groups)
    attach_from(cfg, model, optimizer)
    return optimizer


def optimizer_groups(
    model: nn.Module,
    *,
    transition: bool,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None = 0.0,
    scale_lr_factor: float = 0.1,
    quant_weight_lr_factor: float = 1.0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Return an optimizer's groups: Detectron2's own, quantized weights, quantizers.

    Args:
        model: the model.
        transition: whether the optimizer schedules transition rates, and so wants a group for each
            quantized weight.
        base_lr: learning rate.
        weight_decay: of weights.
        weight_decay_norm: of norms' parameters; None means the same.
        scale_lr_factor: learning rate of quantizers' parameters, relative to base_lr; they get no
            decay.
        quant_weight_lr_factor: learning rate of quantized weights, relative to base_lr.
        **options: of biases, as for Detectron2's ``get_default_optimizer_params``.
    """
    own = core.quantizer_groups(model, base_lr * scale_lr_factor, weight_decay=0.0)
    if transition or quant_weight_lr_factor != 1:
        rate = base_lr * quant_weight_lr_factor
        weights = core.quantized_weight_groups(model, lr=rate, weight_decay=weight_decay)
        own = (weights if transition else core.without_transition(weights)) + own
    taken = {p for group in own for p in group["params"]}
    options |= {"base_lr": base_lr, "weight_decay": weight_decay}
    groups = get_default_optimizer_params(model, weight_decay_norm=weight_decay_norm, **options)
    for group in groups:
        group["params"] = [p for p in group["params"] if p not in taken]
    # Our trainer logs the rate of the first group, Detectron2's tools that of the largest.
    ordinary = sorted(
        (group for group in groups if group["params"]), key=lambda group: -len(group["params"])
    )
    return ordinary + own


def _register(name: str) -> None:
    def build(cfg: CfgNode, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        solver = cfg.SOLVER
        is_replay = OPTIMIZERS[name].transition and solver.TR.REPLAY
        try:
            return make_optimizer(
                name,
                groups,
                lr=solver.BASE_LR,
                weight_decay=solver.WEIGHT_DECAY,
                total_steps=solver.MAX_ITER,
                transition=transition_from(cfg),
                replay=replayed_talr(cfg) if is_replay else None,
                arguments={
                    "momentum": solver.MOMENTUM,
                    "nesterov": solver.NESTEROV,
                    "betas": tuple(solver.BETAS),
                },
            )
        except ConfigError as error:
            raise error.renamed(config_key(error.key)) from None

    builder: Callable[..., Any] = build
    builder.transition = OPTIMIZERS[name].transition  # type: ignore[attr-defined]
    OPTIMIZER_REGISTRY._do_register(name, builder)


def transition_from(cfg: CfgNode) -> dict[str, Any]:
    """Return the values of ``SOLVER.TR`` by the names of the core's table."""
    return {key.lower(): value for key, value in cfg.SOLVER.TR.items()}


def config_key(key: str) -> str:
    """Return the config's name of an optimizer's argument."""
    if key.startswith("tr_"):
        return f"SOLVER.TR.{key[3:].upper()}"
    known = {"learn_weight_scale": "MODEL.QUANT.LEARN_WEIGHT_SCALE", "lr": "SOLVER.BASE_LR"}
    return known.get(key, key)


for _name in OPTIMIZERS:
    _register(_name)
