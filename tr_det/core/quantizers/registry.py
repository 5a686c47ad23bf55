"""Quantizers by name."""

from __future__ import annotations

from typing import Any

from tr_det.core.quantizers.base import Quantizer
from tr_det.core.quantizers.spec import Spec
from tr_det.core.registry import Registry

QUANTIZERS: Registry[Quantizer] = Registry("quantizer")
"""File name -> quantizer class; a new file in this folder is found by itself."""


def build_quantizer(
    name: str,
    bits: int,
    signed: bool,
    *,
    role: str | None = None,
    channels: int | None = None,
    axis: int = 0,
    **options: Any,
) -> Quantizer:
    """Build a quantizer by its name.

    Args:
        name: of its file, e.g. ``"fixed_grid"``.
        bits: width in bits, 1 to 8.
        signed: whether codes can be negative: True for weights, False for inputs after a ReLU.
        role: ``"weight"`` or ``"input"``; by default that of the sign.
        channels: of the weight, for ``per_channel=True``.
        axis: dimension of the weight that has them.
        **options: the quantizer's own, e.g. ``learn_scale=False``.

    Raises:
        ConfigError: an unknown name or option (near names are suggested), or a value that the
            quantizer does not have.
    """
    spec = Spec(bits, signed, role or ("weight" if signed else "input"), channels, axis)
    return QUANTIZERS.build(name, spec, **options)
