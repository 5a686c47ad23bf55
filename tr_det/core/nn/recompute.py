"""Quantized inputs made again in the backward pass instead of kept.

A quantized layer has two inputs to remember where a full-precision one has one: x, which the ReLU
before it keeps anyway, and x_q, for the gradient of the weight. x_q is a pure function of x, so
with `recomputed_input` autograd keeps a recipe in its place: activations are stored once, as in
full precision, and each layer's input is quantized once more in the backward pass, to the same
bits.
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
    """Return a context in which what autograd saves of x_q is ``quantize(x)`` when needed.

    Other tensors, and copies that autocast or padding make of x_q, are kept as usual. Changing x
    before the backward pass is an error, as it is without this.

    Args:
        x: a layer's input.
        x_q: ``quantize(x)``.
        quantize: a pure function: what it gives in the backward pass must be what it gave.
    """
    source = x.detach()
    identity = (x_q.data_ptr(), x_q.dtype, x_q.numel())

    def pack(saved: Tensor) -> tuple[Tensor, int, _Layout | None]:
        if (saved.data_ptr(), saved.dtype, saved.numel()) == identity:
            return source, source._version, (saved.size(), saved.stride())
        return saved, saved._version, None

    def unpack(packed: tuple[Tensor, int, _Layout | None]) -> Tensor:
        tensor, version, layout = packed
        if tensor._version != version:  # autograd's own check does not look behind hooks
            raise RuntimeError(
                "a tensor needed for gradient computation has been modified by an inplace "
                f"operation: is at version {tensor._version}; expected version {version} instead"
            )
        if layout is None:
            return tensor
        with torch.no_grad():
            # The same layout as in the forward pass, so that a view of it is the same view.
            return quantize(tensor).as_strided(*layout)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
