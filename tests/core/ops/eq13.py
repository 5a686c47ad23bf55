"""Eq. 13 and its gradients in NumPy, and what every implementation is asked; loaded by path."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FLOATS = {torch.float32: np.float32, torch.float64: np.float64}
GRIDS = [(bits, signed) for bits in (1, 2, 3, 4, 8) for signed in (True, False)]


def bounds(bits: int, signed: bool) -> tuple[int, int, int]:
    """Return alpha, beta, gamma."""
    if bits == 1:
        return (-1, 1, 1) if signed else (0, 1, 1)
    half = 2 ** (bits - 1)
    return (-half, half - 1, half) if signed else (0, 2 * half - 1, 2 * half)


class Expected(NamedTuple):
    """What Eq. 13 gives, in double precision apart from the quotient.

    The quotient x / (s / gamma) is rounded once, in the precision of the layer: it decides ties
    and what is clipped.
    """

    codes: np.ndarray
    values: np.ndarray
    grad_x: np.ndarray
    grad_scale: float
    magnitude: float  # sum of the terms of grad_scale, without sign

    @classmethod
    def of(cls, x: Tensor, scale: float, grad: Tensor, bits: int, signed: bool) -> "Expected":
        alpha, beta, gamma = bounds(bits, signed)
        number = FLOATS.get(x.dtype, np.float32)  # half precision is widened
        floored = number(max(scale, np.float32(1e-8)))
        wide = x.detach().to(torch.float64).cpu().numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            quotient = wide.astype(number) / (floored / number(gamma))
        codes = np.rint(np.clip(quotient, alpha, beta))
        if bits == 1 and signed:
            codes = np.where(wide < 0, -1.0, 1.0)
        inside = (quotient >= alpha) & (quotient <= beta)
        grads = np.where(inside, grad.detach().to(torch.float64).cpu().numpy(), 0) / float(floored)
        terms = np.where(inside, grads * np.where(inside, wide, 0), 0) / float(floored)
        return cls(codes, codes / gamma, grads, -terms.sum(), np.abs(terms).sum())


def sample(
    shape: tuple[int, ...], dtype: torch.dtype, scale: float, bits: int, signed: bool, seed: int
) -> Tensor:
    """Return a tensor with values of every kind: at and around both bounds, ties, zeros, huge."""
    alpha, beta, gamma = bounds(bits, signed)
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    step = np.float32(scale) / np.float32(gamma)
    points = rng.uniform(alpha - 2, beta + 2, count)
    near = rng.choice([alpha, beta, 0, 0.5, alpha + 0.5, beta - 0.5], count)
    x = np.where(rng.random(count) < 0.5, points, near) * step
    x = x.astype(np.float32)
    ulps = rng.integers(-3, 4, count)  # a few representable numbers up or down
    x = (x.view(np.int32) + np.where(x == 0, 0, ulps).astype(np.int32)).view(np.float32)
    special = rng.random(count) < 0.05
    x = np.where(special, rng.choice([0.0, -0.0, 1e4, -1e4, 1e-40, -1e-40], count), x)
    return torch.from_numpy(np.asarray(x, np.float32).reshape(shape)).to(dtype)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Return the values of a 4-d tensor in several layouts."""
    padded = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    padded[..., ::2] = x
    return {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "strided": padded[..., ::2],
        "permuted": x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    }


def check(actual: tuple[Tensor, Tensor, Tensor], x: Tensor, expected: Expected) -> None:
    """Assert values and dL/dx exact up to the last rounding, dL/ds within its terms' rounding."""
    values, grad_x, grad_scale = actual
    assert values.dtype == grad_x.dtype == x.dtype
    assert values.shape == grad_x.shape == x.shape
    np.testing.assert_array_equal(values.detach().double().cpu().numpy(), expected.values)
    grads = grad_x.double().cpu().numpy()
    np.testing.assert_array_equal(grads == 0, expected.grad_x == 0)
    eps = torch.finfo(x.dtype).eps
    np.testing.assert_allclose(grads, expected.grad_x, rtol=2 * eps, atol=0)
    assert grad_scale.shape == ()
    precision = 1e-13 if x.dtype == torch.float64 else 2e-6
    assert abs(float(grad_scale) - expected.grad_scale) <= precision * expected.magnitude + 1e-30
