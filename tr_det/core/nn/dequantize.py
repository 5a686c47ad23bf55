"""Conversion of quantized layers back to torch's own, with ordinary weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tr_det.core.nn.convert import quantized_layers, source_class
from tr_det.core.nn.layers import LATENT, QuantConv2d, QuantLinear


@torch.no_grad()
def dequantize_model(model: nn.Module) -> int:
    """Replace quantized layers by full-precision ones with de-quantized weights, in place.

    Parameter names are those of the model before `quantize_model`. The factors that a layer's grids
    and its output scale put on its output are folded into the weight:

        output_scale * f(q(x), w_q) + bias = f(x, output_scale * gain * w_q) + bias

    up to rounding and clipping of x, where ``gain`` is `Quantizer.gain` of the input's quantizer.
    With inputs in full precision the outputs are the same up to float rounding.

    Returns:
        How many layers were replaced.

    Raises:
        RuntimeError: a scale has never been set.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    # All before the first copy: layers may share a weight.
    weights = [dequantized_weight(layer) for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.copy_(weight)
    return dequantize_layers(model)


def dequantize_layers(model: nn.Module) -> int:
    """Replace quantized layers by full-precision ones, in place, with their latent weights.

    Returns:
        How many layers were replaced.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    for layer in layers:
        vars(layer.weight).pop(LATENT, None)
        for child in ("weight_quantizer", "input_quantizer", "output_scale"):
            delattr(layer, child)
        layer.__class__ = source_class(type(layer))  # type: ignore[assignment]
    return len(layers)


@torch.no_grad()
def dequantized_weight(layer: QuantConv2d | QuantLinear) -> Tensor:
    """Return the weight of an equivalent full-precision layer, in the latent weight's shape."""
    for part in layer.parts():
        part.require_calibrated()
    weight = layer.quantized_weight()
    if layer.input_quantizer is not None:
        weight = weight * layer.input_quantizer.gain()
    if layer.output_scale is not None:
        weight = weight * layer.output_scale.scale
    return weight
