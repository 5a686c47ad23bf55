"""Functions that change gradients, not values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.ops.backends import applied


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class _PassGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, any shape; its gradient is multiplied by the factor.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> scale_gradient(x, 0.5).square().backward(); x.grad.item()
    3.0
    """
    return applied(_ScaleGradient, x, factor)


def pass_gradient(x: Tensor, value: Tensor) -> Tensor:
    """Return the value, of x's shape and dtype; its gradient passes to x unchanged.

    >>> x = torch.tensor([0.2, 0.7], requires_grad=True)
    >>> pass_gradient(x, x.detach().round()).sum().backward(); x.grad.tolist()
    [1.0, 1.0]
    """
    return applied(_PassGradient, x, value)


def at_least(x: Tensor, smallest: float) -> Tensor:
    """Return max(x, smallest), in x's shape; the gradient passes everywhere.

    >>> x = torch.tensor(-1.0, requires_grad=True)
    >>> y = at_least(x, 0.5); y.backward(); (y.item(), x.grad.item())
    (0.5, 1.0)
    """
    return pass_gradient(x, x.clamp_min(smallest))
