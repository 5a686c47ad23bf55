"""Parameter groups of a quantized model: one per quantized weight, one for scales, the rest."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from tr_det.core.errors import check
from tr_det.core.nn.convert import quantized_layers
from tr_det.core.quantizers import Calibrated, Quantizer

Group = dict[str, Any]


def quantized_weight_groups(model: nn.Module, **options: Any) -> list[Group]:
    """Return one group per quantized weight, in the model's order.

    Args:
        model: a model that `quantize_model` has converted.
        **options: put into every group, e.g. ``lr`` and ``weight_decay``.

    Returns:
        Groups with ``params`` (one latent weight), ``name`` (its full parameter name),
        ``quantizer`` (its quantizer; TR-scheduled optimizers look for this key) and the options. A
        weight shared by several layers comes once.

    Raises:
        ValueError: if a weight is shared by layers with different quantizers.
    """
    groups: list[Group] = []
    seen: dict[Tensor, str] = {}
    for name, layer in quantized_layers(model):
        if layer.weight_quantizer is None or not layer.weight.requires_grad:
            continue
        if layer.weight in seen:
            raise ValueError(
                f"layer {name!r}: shares its weight with {seen[layer.weight]!r} but has its "
                "own quantizer; use the same layer object in both places"
            )
        seen[layer.weight] = name
        groups.append(
            {
                "params": [layer.weight],
                "name": f"{name}.weight",
                "quantizer": layer.weight_quantizer,
                **options,
            }
        )
    return groups


def quantizer_groups(model: nn.Module, lr: float, **options: Any) -> list[Group]:
    """Return the groups of all trainable parameters of quantizers and output scales.

    They make one group, but for quantizers that ask for options of their own
    (`Quantizer.param_options`).

    Args:
        model: a model that `quantize_model` has converted.
        lr: learning rate of these parameters.
        **options: put into every group, e.g. ``weight_decay``.
    """
    groups: list[Group] = []
    for module in model.modules():
        params = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if not params or not isinstance(module, Calibrated):
            continue
        own = module.param_options() if isinstance(module, Quantizer) else {}
        wanted = {**options, "lr": lr * own.pop("lr_factor", 1.0), **own}
        for group in groups:
            if {key: value for key, value in group.items() if key != "params"} == wanted:
                group["params"] += params
                break
        else:
            groups.append({"params": params, **wanted})
    return groups


def tr_param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    norm_weight_decay: float | None = None,
    scale_lr_factor: float = 0.1,
    quant_weight_lr_factor: float = 1.0,
) -> list[Group]:
    """Return optimizer groups of a quantized model: the rest, quantized weights, quantizers.

    The same groups serve plain torch optimizers: take the ``quantizer`` key out (see
    `without_transition`).

    Args:
        model: a model that `quantize_model` has converted; plain models give one group.
        lr: base learning rate, > 0.
        weight_decay: of weights and biases.
        norm_weight_decay: of norm layers' parameters; None means the same as weight_decay.
        scale_lr_factor: learning rate of quantizers' parameters relative to lr (the paper: a
            tenth, S4.1); they get no decay.
        quant_weight_lr_factor: learning rate of quantized weights relative to lr; under TR
            scheduling also of what their TALR begins with and grows by.

    Raises:
        ConfigError: if a number is out of range.
    """
    check("lr", lr, 0 < lr < math.inf, "positive and finite")
    for name, value in (
        ("weight_decay", weight_decay),
        ("norm_weight_decay", norm_weight_decay or 0.0),
        ("scale_lr_factor", scale_lr_factor),
        ("quant_weight_lr_factor", quant_weight_lr_factor),
    ):
        check(name, value, 0 <= value < math.inf, "finite and not negative")
    rate = lr * quant_weight_lr_factor
    weights = quantized_weight_groups(model, lr=rate, weight_decay=weight_decay)
    scales = quantizer_groups(model, lr * scale_lr_factor, weight_decay=0.0)
    taken = {p for group in weights + scales for p in group["params"]}
    norms = {p for m in model.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
    rest = [p for p in model.parameters() if p.requires_grad and p not in taken]
    norm_decay = weight_decay if norm_weight_decay is None else norm_weight_decay
    decays = [norm_decay if p in norms else weight_decay for p in rest]
    groups: list[Group] = []
    for decay in dict.fromkeys([weight_decay, norm_decay]):
        params = [p for p, own in zip(rest, decays, strict=True) if own == decay]
        groups.append({"params": params, "lr": lr, "weight_decay": decay})
    return [group for group in groups if group["params"]] + weights + scales


def without_transition(groups: list[Group]) -> list[Group]:
    """Return the groups without their quantizers, for a plain torch optimizer."""
    return [{key: value for key, value in group.items() if key != "quantizer"} for group in groups]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)
