"""Builders, inputs, oracles and comparisons that the tests of several quantizers share."""

import numpy as np
import pytest
import torch

from tr_det.core import ConfigError, build_quantizer

SHAPE = (3, 5, 4, 2)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
FEW_BITS = (1, 2, 3, 8)
"""The widths with code paths of their own, and one in between."""

every_kind = pytest.mark.parametrize(
    ("role", "signed", "axis"),
    [
        ("weight", True, None),
        ("weight", True, 0),
        ("weight", True, 1),
        ("input", True, None),
        ("input", False, None),
    ],
)
every_axis = pytest.mark.parametrize("axis", [None, 0, 1])


def bounds(bits, signed):
    """Return the smallest and the largest code."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def per_channel(axis, shape=SHAPE):
    """Return the options of one scale per channel, or of one per tensor."""
    return {} if axis is None else {"per_channel": True, "channels": shape[axis], "axis": axis}


def other_dims(axis, ndim=4):
    """Return the dimensions that share a scale."""
    return tuple(d for d in range(ndim) if d != axis)


def build(name, bits, signed, values, axis=None, **options):
    """Return a quantizer with the given numbers in its parameters and buffers."""
    quantizer = build_quantizer(name, bits, signed, **per_channel(axis), **options)
    quantizer.attached = True
    with torch.no_grad():
        for key, value in values.items():
            getattr(quantizer, key).copy_(torch.as_tensor(value))
    return quantizer


def drawn(rng, low, high, axis):
    """Return one float32 number per scale."""
    return rng.uniform(low, high, () if axis is None else (SHAPE[axis],)).astype(np.float32)


def spread(numbers, axis):
    """Return one number per scale as float64 that broadcasts to SHAPE."""
    view = [-1 if d == axis else 1 for d in range(4)]
    return np.asarray(numbers, np.float64).reshape([] if axis is None else view)


def off_ties(t, *ends, margin=0.02):
    """Move quotients off ties and ends, where float32 decides the side."""
    t = np.where(np.abs(t - np.floor(t) - 0.5) < margin, t + 3 * margin, t)
    near = np.any([np.abs(t - end) < margin for end in ends], 0) if ends else False
    return np.where(near, t + 3 * margin, t)


def slope(function, at, size=1e-6):
    """Return the derivative of an elementwise function."""
    return (function(at + size) - function(at - size)) / (2 * size)


def step_size_oracle(x, grad, scale, offset, low, high):
    """Return values, dL/dx and each element's terms of dL/ds and dL/dbeta: LSQ+'s Eqs. 3 to 6.

    With an offset of zero these are Eqs. 1 to 5 of LSQ.
    """
    t = (x - offset) / scale
    code = np.rint(np.clip(t, low, high))
    inside = (t > low) & (t < high)
    ds = np.where(t <= low, low, np.where(t >= high, high, code - t))
    return code * scale + offset, grad * inside, grad * ds, grad * ~inside


def check_quantizer(
    quantizer, x, grad, value, dx, terms, axis=None, *, tolerance, absolute=0.0, clear=...
):
    """Assert values and gradients in two layouts.

    Args:
        quantizer: with its numbers set.
        x: float32 array of four dimensions.
        grad: dL/dvalue, likewise.
        value: expected values.
        dx: expected dL/dx.
        terms: expected terms of dL/dp by the name of p, to be summed over what shares a scale.
        axis: of the channels.
        tolerance: of values and of dL/dx, as of `assert_allclose`, and of the sums of terms,
            relative to the sum of their magnitudes.
        absolute: tolerance of the sums of terms on top.
        clear: where values are compared.
    """
    for layout in LAYOUTS:
        quantizer.zero_grad()
        given = torch.tensor(x).to(memory_format=layout).requires_grad_()
        out = quantizer(given)
        out.backward(torch.tensor(grad).to(memory_format=layout))
        np.testing.assert_allclose(out.detach().numpy()[clear], value[clear], **tolerance[0])
        np.testing.assert_allclose(given.grad.numpy(), dx, **tolerance[1])
        for name, each in terms.items():
            expected = each.sum(other_dims(axis))
            found = getattr(quantizer, name).grad.numpy()
            assert found.shape == expected.shape
            size = np.abs(each).sum(other_dims(axis)).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance[2] * size + absolute)


def check_refused(key, name, bits, signed, **options):
    """Assert that a quantizer cannot be built, for the reason of one key."""
    with pytest.raises(ConfigError) as error:
        build_quantizer(name, bits, signed, **options)
    assert error.value.key == key
