"""Optimizers by name for Detectron2: plain torch ones and their TR-scheduled twins."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.registry import Registry
from torch import nn

from tr_det import core
from tr_det.detection.clipping import with_gradient_clipping
from tr_det.detection.events import TransitionLogger

OPTIMIZER_REGISTRY = Registry("OPTIMIZER")
OPTIMIZER_REGISTRY.__doc__ = """
Registry of optimizers, chosen by ``cfg.SOLVER.OPTIMIZER``.

A registered object is called with ``(cfg, groups)`` and returns the optimizer. Its attribute
``transition`` says whether the groups must hold one group per quantized weight (with its
quantizer), or ordinary ones.
"""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``cfg.SOLVER.OPTIMIZER``, clipping gradients as ``cfg.SOLVER.CLIP_GRADIENTS`` says.

    Groups: first Detectron2's own for all ordinary parameters (norm and bias options respected);
    then, for optimizers with TR scheduling, one per quantized weight; last the scales at
    ``SCALE_LR_FACTOR`` times the learning rate.

    Raises:
        ValueError: unknown optimizer, or a value out of range.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name not in OPTIMIZER_REGISTRY:
        raise ValueError(
            f"SOLVER.OPTIMIZER={name!r}: must be one of "
            f"{sorted(key for key, _ in OPTIMIZER_REGISTRY)}"
        )
    builder = OPTIMIZER_REGISTRY.get(name)
    optimizer = builder(cfg, build_param_groups(cfg, model, builder.transition))
    if builder.transition:
        optimizer.step_callback = TransitionLogger(cfg.SOLVER.TR.LOG_PERIOD)
        if not any("quantizer" in group for group in optimizer.param_groups):
            logging.getLogger(__name__).warning(
                "SOLVER.OPTIMIZER=%s: no weight is quantized, so this is the plain optimizer",
                name,
            )
    return optimizer


def build_param_groups(cfg: CfgNode, model: nn.Module, transition: bool) -> list[dict[str, Any]]:
    """Return the optimizer's groups; see `build_optimizer`."""
    solver = cfg.SOLVER
    return optimizer_groups(
        model,
        transition=transition,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        scale_lr_factor=solver.SCALE_LR_FACTOR,
    )


def optimizer_groups(
    model: nn.Module,
    *,
    transition: bool,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None = 0.0,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    scale_lr_factor: float = 0.1,
) -> list[dict[str, Any]]:
    """Return an optimizer's groups: Detectron2's own, quantized weights, scales.

    Args:
        model: the model.
        transition: whether the optimizer schedules transition rates, and so wants a group for each
            quantized weight.
        base_lr: learning rate.
        weight_decay: of weights.
        weight_decay_norm: of norms' parameters; None means the same.
        bias_lr_factor: learning rate of biases, relative to base_lr.
        weight_decay_bias: of biases; None means the same as of weights.
        scale_lr_factor: learning rate of scales, relative to base_lr; they get no decay.
    """
    own = core.scale_group(model, lr=base_lr * scale_lr_factor, weight_decay=0.0)
    if transition:
        own = core.quantized_weight_groups(model, lr=base_lr, weight_decay=weight_decay) + own
    taken = {p for group in own for p in group["params"]}
    groups = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        bias_lr_factor=bias_lr_factor,
        weight_decay_bias=weight_decay_bias,
    )
    for group in groups:
        group["params"] = [p for p in group["params"] if p not in taken]
    # Detectron2 logs the learning rate of the group with most parameters.
    ordinary = sorted(
        (group for group in groups if group["params"]), key=lambda group: -len(group["params"])
    )
    return ordinary + own


def _tr_arguments(cfg: CfgNode) -> dict[str, Any]:
    tr = cfg.SOLVER.TR
    return {
        "total_steps": cfg.SOLVER.MAX_ITER,
        "tr_factor": "auto" if tr.FACTOR == -1 else tr.FACTOR,
        "tr_momentum": None if tr.MOMENTUM == -1 else tr.MOMENTUM,
        "tr_schedule": tr.SCHEDULE,
        "tr_warmup": tr.WARMUP_ITERS,
        "tr_final": tr.FINAL,
        "tr_update": tr.UPDATE,
        "tr_signal": tr.SIGNAL,
        "tr_granularity": tr.GRANULARITY,
        "tr_gain": tr.GAIN or None,
        "tr_decay": tr.DECAY,
        "tr_nonfinite": tr.NONFINITE,
    }


def _register(
    name: str, plain: type, scheduled: type, arguments: Callable[[CfgNode], dict[str, Any]]
) -> None:
    def make(optimizer: type, transition: bool) -> Callable[..., torch.optim.Optimizer]:
        def build(cfg: CfgNode, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            extra = _tr_arguments(cfg) if transition else {}
            try:
                return with_gradient_clipping(cfg, optimizer)(
                    groups, lr=cfg.SOLVER.BASE_LR, **arguments(cfg), **extra
                )
            except ValueError as error:
                raise ValueError(_as_config_key(str(error))) from None

        build.transition = transition  # type: ignore[attr-defined]
        return build

    OPTIMIZER_REGISTRY._do_register(name, make(plain, False))
    OPTIMIZER_REGISTRY._do_register(f"{name}T", make(scheduled, True))


def _as_config_key(message: str) -> str:
    """Turn ``tr_factor=...`` of the core's messages into the config key's name."""
    if message.startswith("tr_"):
        key, _, rest = message.partition("=")
        name = {"tr_warmup": "WARMUP_ITERS"}.get(key, key[3:].upper())
        return f"SOLVER.TR.{name}={rest}"
    return message


def _sgd(cfg: CfgNode) -> dict[str, Any]:
    return {
        "momentum": cfg.SOLVER.MOMENTUM,
        "nesterov": cfg.SOLVER.NESTEROV,
        "weight_decay": cfg.SOLVER.WEIGHT_DECAY,
    }


def _adam(cfg: CfgNode) -> dict[str, Any]:
    return {"betas": tuple(cfg.SOLVER.BETAS), "weight_decay": cfg.SOLVER.WEIGHT_DECAY}


def _rmsprop(cfg: CfgNode) -> dict[str, Any]:
    return {"momentum": cfg.SOLVER.MOMENTUM, "weight_decay": cfg.SOLVER.WEIGHT_DECAY}


def _adagrad(cfg: CfgNode) -> dict[str, Any]:
    return {"weight_decay": cfg.SOLVER.WEIGHT_DECAY}


_register("SGD", torch.optim.SGD, core.SGDT, _sgd)
_register("Adam", torch.optim.Adam, core.AdamT, _adam)
_register("NAdam", torch.optim.NAdam, core.NAdamT, _adam)
_register("Adamax", torch.optim.Adamax, core.AdamaxT, _adam)
_register("AdamW", torch.optim.AdamW, core.AdamWT, _adam)
_register("RMSprop", torch.optim.RMSprop, core.RMSpropT, _rmsprop)
_register("Adagrad", torch.optim.Adagrad, core.AdagradT, _adagrad)
