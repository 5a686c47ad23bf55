"""How much storage a model's parameters take."""

from __future__ import annotations

from torch import Tensor, nn

from tr_det.core.nn.config import FULL_PRECISION
from tr_det.core.nn.convert import quantized_layers


def storage_mb(model: nn.Module) -> tuple[float, float]:
    """Return the storage of all parameters at their bit-widths, and at 32 bits.

    A shared parameter counts once. Scales of quantizers are parameters like any other, at 32 bits.

    Returns:
        MB, 10^6 bytes.

    >>> storage_mb(nn.Linear(50, 2, bias=False))
    (0.0004, 0.0004)
    """
    bits: dict[Tensor, int] = dict.fromkeys(model.parameters(), FULL_PRECISION)
    for _, layer in quantized_layers(model):
        if layer.weight_quantizer is not None:
            bits[layer.weight] = layer.weight_quantizer.bits
    own = sum(p.numel() * width for p, width in bits.items())
    return own / 8e6, sum(p.numel() for p in bits) * FULL_PRECISION / 8e6
