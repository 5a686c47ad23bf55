"""Quantized inputs that are recomputed in the backward pass instead of stored.

Autograd stores one activation for a full-precision layer and two for a quantized one: x, which the
ReLU before it stores anyway, and x_q, for the gradient of the weight. x_q is a pure function of x.
With `recomputed_input` only x is stored, as in full precision, and the backward pass quantizes it
again, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

_Layout = tuple[torch.Size, tuple[int, ...]]


def recomputed_input(
    x: Tensor, x_q: Tensor, quantize: Callable[[Tensor], Tensor]
) -> AbstractContextManager[Any]:
    """Return a context in which autograd recomputes x_q as ``quantize(x)`` instead of saving it.

    Other tensors, and copies that autocast or padding make of x_q, are saved as usual. Changing x
    before the backward pass is an error, as it is without this context.

    Args:
        x: a layer's input, any shape.
        x_q: ``quantize(x)``, the same shape.
        quantize: a pure function.
    """
    source = x.detach()
    identity = (x_q.data_ptr(), x_q.dtype, x_q.numel())

    def pack(saved: Tensor) -> tuple[Tensor, int, _Layout | None]:
        if (saved.data_ptr(), saved.dtype, saved.numel()) == identity:
            return source, source._version, (saved.size(), saved.stride())
        return saved, saved._version, None

    def unpack(packed: tuple[Tensor, int, _Layout | None]) -> Tensor:
        tensor, version, layout = packed
        if tensor._version != version:  # autograd's own check does not cover hooks
            raise RuntimeError(
                "a tensor needed for gradient computation has been modified by an inplace "
                f"operation: is at version {tensor._version}; expected version {version} instead"
            )
        if layout is None:
            return tensor
        with torch.no_grad():
            # In the forward pass's layout, so that views of x_q are the same.
            return quantize(tensor).as_strided(*layout)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
