"""A layer's output times a learnable scalar, without keeping the unscaled output.

For a layer that is linear in its weight, ``y = s f(x, w)``, autograd's own product would save
``f(x, w)``, as large as the output, for

    dL/ds = sum(g f(x, w)),    g = dL/dy.

The gradient of the weight is enough: f is linear in w, so with ``dL/dw = s f_w(x)^T g``, Euler's
identity gives

    dL/ds = <dL/dw, w> / s.

So `tie_scale` returns the weight and computes dL/ds from its gradient, and `scale_output`
multiplies in place. Values are those of ``f(x, w) * s``; dL/ds is the same up to float rounding. At
s = 0, which does not occur in training, dL/ds is 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.ops.backends import applied


class _TieScale(torch.autograd.Function):
    """Identity on the weight; dL/ds from the weight's gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)  # the layer saves the same weight for dL/dx
        return weight.view_as(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        weight, scale = ctx.saved_tensors
        total = (grad * weight).sum(dtype=scale.dtype)
        return grad, torch.where(scale == 0, 0, total / scale)


class _ScaleOutput(torch.autograd.Function):
    """Product in place; the scale's gradient is left to `_TieScale`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.mark_dirty(output)
        return output.mul_(scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return grad * scale, None


def tie_scale(weight: Tensor, scale: Tensor) -> Tensor:
    """Return the weight; from its gradient follows that of the scale.

    Args:
        weight: w of a function linear in w, any shape.
        scale: 0-d; s, by which `scale_output` multiplies that function's output.
    """
    return applied(_TieScale, weight, scale)


def scale_output(output: Tensor, scale: Tensor) -> Tensor:
    """Multiply by the scale in place; gradients go to the output alone.

    Args:
        output: of a convolution or matrix product with a weight from `tie_scale`, any shape; its
            unscaled values must not be needed elsewhere.
        scale: 0-d.

    >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]], requires_grad=True)
    >>> s = torch.tensor(0.5, requires_grad=True)
    >>> y = scale_output(x @ tie_scale(w, s).T, s)
    >>> y.backward(); y.item(), s.grad.item(), w.grad.tolist()
    (5.5, 11.0, [[0.5, 1.0]])
    """
    return applied(_ScaleOutput, output, scale)
