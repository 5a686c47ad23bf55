"""Affine grids and their gradients in NumPy, and the inputs that all implementations get."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tr_det.core.ops import Affine

FLOATS = {torch.float32: np.float32, torch.float64: np.float64}


def eq13(bits: int, signed: bool, **options) -> Affine:
    """Return the paper's grid."""
    if bits == 1:
        sign = Affine(-1, 0, unit=1.0, mul=2, add=1, sign=True, **options)
        return sign if signed else Affine(0, 1, unit=1.0, **options)
    half = 2 ** (bits - 1)
    low, high, gamma = (-half, half - 1, half) if signed else (0, 2 * half - 1, 2 * half)
    return Affine(low, high, divisor=gamma, unit=1 / gamma, **options)


EQ13 = {name: eq13(int(name[0]), name[1] == "s") for name in ("1s", "1u", "4s", "4u", "8u")}
GRIDS = EQ13 | {
    "lsq": Affine(-4, 3),
    "lsq round": Affine(-3, 3, estimator="round"),
    "lsq sign": Affine(-1, 0, mul=2, add=1, sign=True),
    "ewgs": Affine(
        -8, 7, divisor=15, unit=1 / 15, mul=2, add=1, base=-8, estimator="ewgs", delta=0.2
    ),
    "ewgs lsq": Affine(0, 15, estimator="ewgs", delta=0.3),
    "ewgs sign": replace(eq13(1, True), estimator="ewgs", delta=0.2),
    "dorefa": Affine(0, 6, divisor=3, unit=2 / 3, mul=3, add=-9, estimator="identity"),
    "asymmetric": Affine(0, 255, divisor=255, offset=True, estimator="round"),
    "zero point": Affine(-8, 7, base=3, offset=True),
    "half steps": Affine(-4, 3, divisor=3.5, add=0.5, lead=0.5, estimator="identity"),
    "half steps clipped": Affine(-4, 3, add=0.5, lead=0.5, estimator="round"),
    "pact": Affine(0, 15, divisor=15, scale_by_clipped=True),
    "through": Affine(-2, 1, divisor=3, mul=3, estimator="identity"),
}
"""Every estimator, with and without a fixed output grid, sign, base, mul, add and offset."""


def shifts(affine: Affine) -> bool:
    """Return whether a grid is tested with a shift."""
    return affine.base != 0 or affine.offset or affine.estimator == "round"


class Expected(NamedTuple):
    """What the definition gives, in double precision apart from t.

    t is rounded as the layer's precision does: it decides ties and what is clipped.
    """

    codes: np.ndarray
    values: np.ndarray
    grad_x: np.ndarray
    grad_scale: np.ndarray
    grad_shift: np.ndarray
    magnitude: np.ndarray  # sums of the terms of grad_scale, and of grad_shift, without sign

    @classmethod
    def of(
        cls, x: Tensor, scale: Tensor, shift: Tensor | None, grad: Tensor, a: Affine
    ) -> "Expected":
        number = FLOATS.get(x.dtype, np.float32)  # half precision is widened

        def spread(parameter):
            flat = parameter.detach().cpu().numpy().astype(number)
            return flat.reshape([-1 if d == a.axis else 1 for d in range(x.ndim)])

        wide, g = (t.detach().to(torch.float64).cpu().numpy() for t in (x, grad))
        s = np.maximum(spread(scale), number(np.float32(1e-8)))
        z = spread(torch.zeros_like(scale) if shift is None else shift)
        with np.errstate(all="ignore"):
            u = (wide.astype(number) - z) / (s / number(a.divisor))
            t = (u - number(a.lead)).astype(np.float64)
        s, z = s.astype(np.float64), z.astype(np.float64)
        low, high = (-1, 1) if a.sign else (a.low - a.base, a.high - a.base)
        inside_t = np.clip(t, low, high)
        codes = np.where(wide < 0, a.low, a.high) if a.sign else a.base + np.rint(inside_t)
        m = a.mul * codes + a.add
        values = m * (s / a.divisor if a.unit is None else a.unit) + (z if a.offset else 0)
        k = 1 if a.sign else a.mul
        factor = np.ones_like(t)
        if a.estimator == "ewgs":
            rounded = m if a.sign else np.rint(inside_t)
            factor = 1 + a.delta * np.sign(g) * (inside_t - rounded)
        judged = np.rint(t) if a.estimator == "round" else t
        mask = (judged >= low) & (judged <= high) | (a.estimator == "identity")
        passed = np.where(mask, g * factor, 0)
        slope = m if a.scale_by_clipped else factor * k * np.where(mask, t + a.lead, 0)
        if a.unit is None:
            grad_x = passed * k
            terms = g * (m - mask * slope) / a.divisor
            sizes = np.abs(g) * (np.abs(m) + np.abs(mask * slope)) / a.divisor
        else:
            grad_x = passed / (s / (a.divisor * a.unit * k))
            terms = -grad_x * (wide - z) / s
            sizes = np.abs(terms)
        others = tuple(d for d in range(x.ndim) if d != a.axis)
        shift_terms = [-grad_x, g] if a.offset else [-grad_x]
        return cls(
            codes,
            values,
            grad_x,
            terms.sum(others),
            sum(term.sum(others) for term in shift_terms),
            np.stack([sizes.sum(others), sum(np.abs(v).sum(others) for v in shift_terms)]),
        )


def sample(shape, dtype, scale, shift, affine: Affine, seed: int) -> Tensor:
    """Return a tensor with values of every kind: at and around both bounds, ties, zeros, huge."""
    low, high = affine.bounds
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    step = np.float32(scale) / np.float32(affine.divisor)
    points = rng.uniform(low - 2, high + 2, count)
    near = rng.choice([low, high, 0, 0.5, low + 0.5, high - 0.5, low - 0.5, high + 0.5], count)
    x = np.where(rng.random(count) < 0.5, points, near) * step + shift
    x = x.astype(np.float32)
    ulps = rng.integers(-3, 4, count)  # a few representable numbers up or down
    x = (x.view(np.int32) + np.where(x == 0, 0, ulps).astype(np.int32)).view(np.float32)
    special = rng.random(count) < 0.05
    x = np.where(special, rng.choice([0.0, -0.0, 1e4, -1e4, 1e-40, -1e-40], count), x)
    return torch.from_numpy(np.asarray(x, np.float32).reshape(shape)).to(dtype)


def parameters(affine: Affine, shape, dtype, scale=0.7, shift=-0.3) -> tuple[Tensor, Tensor | None]:
    """Return a scale and a shift or None, float64 for float64, else float32; channels differ."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    sizes = () if affine.axis is None else (shape[affine.axis],)
    spread = torch.linspace(1, 2, sizes[0], dtype=wide) if sizes else torch.ones((), dtype=wide)
    return scale * spread, shift * spread if shifts(affine) else None


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


def check(actual, x: Tensor, expected: Expected) -> None:
    """Assert values and gradients (scale's, shift's last, None for no shift) up to rounding."""
    values, grad_x, *sums = actual
    assert values.dtype == grad_x.dtype == x.dtype
    assert values.shape == grad_x.shape == x.shape
    eps = torch.finfo(x.dtype).eps
    np.testing.assert_allclose(
        values.detach().double().cpu().numpy(), expected.values, rtol=2 * eps, atol=4 * eps
    )
    grads = grad_x.double().cpu().numpy()
    np.testing.assert_array_equal(grads == 0, expected.grad_x == 0)
    np.testing.assert_allclose(grads, expected.grad_x, rtol=4 * eps, atol=0)
    precision = 1e-13 if x.dtype == torch.float64 else 2e-6
    for ours, theirs, magnitude in zip(sums, expected[3:5], expected.magnitude, strict=False):
        if ours is not None:
            assert tuple(ours.shape) == theirs.shape
            error = np.abs(ours.detach().double().cpu().numpy() - theirs)
            assert (error <= precision * magnitude + 1e-30).all()
