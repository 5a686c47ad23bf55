"""LSQ against its equations in float64, torch's own learnable quantizer, and Brevitas."""

import math

import numpy as np
import pytest
import torch

from tr_det.core import ConfigError, build_quantizer

BOUNDS = {True: lambda b: (-(2 ** (b - 1)), 2 ** (b - 1) - 1), False: lambda b: (0, 2**b - 1)}
FORMATS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
    "strided": lambda t: torch.stack((t, t), -1)[..., 0],
}


def away_from_ties(t, low, high):
    """Move quotients off the ties and off the bounds, where float32 decides the side."""
    t = np.where(np.abs(t - np.floor(t) - 0.5) < 0.01, t + 0.03, t)
    return np.where((np.abs(t - low) < 0.01) | (np.abs(t - high) < 0.01), t + 0.03, t)


def oracle(x, grad, scale, low, high):
    """Return values, dL/dx and each element's term of dL/ds: Eqs. 1 to 5 of the paper."""
    t = x / scale
    code = np.rint(np.clip(t, low, high))
    inside = (t > low) & (t < high)
    ds = np.where(t <= low, low, np.where(t >= high, high, code - t))
    return code * scale, np.where(inside, grad, 0.0), grad * ds


def case(bits, signed, role, axis, seed, **options):
    """Return a quantizer with its scales set, x, grad, the broadcast scale and the bounds."""
    rng = np.random.default_rng(seed)
    low, high = BOUNDS[signed](bits)
    shape = (3, 5, 4, 2)
    channels = None if axis is None else shape[axis]
    if axis is not None:
        options |= {"per_channel": True, "channels": channels, "axis": axis}
    quantizer = build_quantizer("lsq", bits, signed, role=role, **options)
    scales = rng.uniform(0.1, 0.5, () if axis is None else (channels,)).astype(np.float32)
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor(scales))
    broadcast = scales.astype(np.float64)
    if axis is not None:
        broadcast = broadcast.reshape([-1 if d == axis else 1 for d in range(4)])
    t = rng.uniform(low - 1.5 if signed else 0.02, high + 1.5, shape)
    x = (away_from_ties(t, low, high) * broadcast).astype(np.float32)
    return quantizer, x, rng.normal(size=shape).astype(np.float32), broadcast, (low, high)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("signed", "role", "axis"),
    [
        (True, "weight", None),
        (True, "weight", 0),
        (True, "weight", 1),
        (True, "input", None),
        (False, "input", None),
    ],
)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("gradient_scale", [True, False])
def test_values_and_gradients_are_the_papers(bits, signed, role, axis, layout, gradient_scale):
    quantizer, x, grad, scale, (low, high) = case(
        bits, signed, role, axis, bits, gradient_scale=gradient_scale
    )
    value, dx, terms = oracle(x.astype(np.float64), grad.astype(np.float64), scale, low, high)
    others = tuple(d for d in range(4) if d != axis)
    ds, size = terms.sum(others), np.abs(terms).sum(others)
    if gradient_scale:
        # N: the weights that share the step, or the features of one sample.
        count = x[0].size if role == "input" else x.size / quantizer.scale.numel()
        ds, size = ds / math.sqrt(count * high), size / math.sqrt(count * high)
    given = FORMATS[layout](torch.tensor(x)).requires_grad_()
    out = quantizer(given)
    out.backward(FORMATS[layout](torch.tensor(grad)))
    np.testing.assert_allclose(out.detach().numpy(), value, rtol=1e-6)
    np.testing.assert_allclose(given.grad.numpy(), dx, rtol=1e-6)
    assert quantizer.scale.grad.shape == ds.shape
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), ds, atol=2e-6 * size.max())


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_first_step_size_is_2_mean_x_over_root_q_p(bits, axis):
    x = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(0))
    rows = np.abs(x.double().numpy())
    expected = 2 * rows.mean(tuple(d for d in range(3) if d != axis))
    options = {} if axis is None else {"per_channel": True, "channels": x.shape[axis], "axis": axis}
    weights = build_quantizer("lsq", bits, True, **options)
    weights.calibrate(x)
    np.testing.assert_allclose(
        weights.scale.detach().numpy(), expected / math.sqrt(2 ** (bits - 1) - 1), rtol=1e-6
    )
    if axis is None:
        inputs = build_quantizer("lsq", bits, False)
        inputs.calibrate(x.abs())
        assert inputs.scale.item() == pytest.approx(expected / math.sqrt(2**bits - 1), rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_first_step_size_can_be_that_of_least_squared_error(bits, axis):
    """The range search of Nagel et al.: i/100 of max|x| over Q_P, i = 1..100."""
    x = torch.randn(6, 7, 30, generator=torch.Generator().manual_seed(bits))

    def searched(row, low, high):
        steps = np.abs(row).max() * np.arange(1, 101) / 100 / high
        errors = [((np.clip(np.rint(row / s), low, high) * s - row) ** 2).sum() for s in steps]
        return steps[np.argmin(errors)]

    options = {} if axis is None else {"per_channel": True, "channels": x.shape[axis], "axis": axis}
    exact = x.double().numpy()
    rows = exact.reshape(1, -1) if axis is None else np.moveaxis(exact, axis, 0)
    weights = build_quantizer("lsq", bits, True, initial="mse", **options)
    weights.calibrate(x)
    expected = np.array([searched(row.ravel(), *BOUNDS[True](bits)) for row in rows])
    np.testing.assert_allclose(weights.scale.detach().numpy().reshape(-1), expected, rtol=1e-6)
    inputs = build_quantizer("lsq", bits, False, initial="mse")
    inputs.calibrate(x.abs())
    expected = searched(np.abs(exact).ravel(), *BOUNDS[False](bits))
    assert inputs.scale.item() == pytest.approx(expected, rel=1e-6)
    inputs.calibrate(torch.zeros(2, 3))
    assert inputs.scale.item() == pytest.approx(1 / (2**bits - 1))
    with pytest.raises(ConfigError) as error:
        build_quantizer("lsq", bits, True, initial="minmax")
    assert error.value.key == "initial"


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_rounding_before_clamping_is_torchs_own_learnable_quantizer(bits, axis):
    """Their mask looks at the rounded value, as the estimator "round" does."""
    quantizer, x, grad, _, (low, high) = case(bits, True, "weight", axis, 7, estimator="round")
    factor = 1.0 / math.sqrt(x.size / quantizer.scale.numel() * high)
    results = []
    for ours in (True, False):
        given = torch.tensor(x, requires_grad=True)
        scale = quantizer.scale.detach().clone().requires_grad_()
        if ours:
            out, scale = quantizer(given), quantizer.scale
        elif axis is None:
            out = torch._fake_quantize_learnable_per_tensor_affine(
                given, scale.view(1), torch.zeros(1), low, high, factor
            )
        else:
            out = torch._fake_quantize_learnable_per_channel_affine(
                given, scale, torch.zeros(len(scale)), axis, low, high, factor
            )
        out.backward(torch.tensor(grad))
        results.append((out.detach(), given.grad, scale.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_brevitas_computes_the_same_step_gradient(bits):
    """Brevitas has no scale on the step's gradient; where it passes is as in torch's quantizer."""
    pytest.importorskip("brevitas")
    from brevitas.core.bit_width import BitWidthConst
    from brevitas.core.function_wrapper import RoundSte, TensorClamp
    from brevitas.core.quant import IntQuant

    quantizer, x, grad, _, (low, high) = case(
        bits, True, "weight", None, 3, estimator="round", gradient_scale=False
    )
    brevitas = IntQuant(
        narrow_range=False,
        signed=True,
        float_to_int_impl=RoundSte(),
        tensor_clamp_impl=TensorClamp(),
    )
    results = []
    for ours in (True, False):
        given = torch.tensor(x, requires_grad=True)
        scale = quantizer.scale if ours else quantizer.scale.detach().clone().requires_grad_()
        zero, width = torch.tensor(0.0), BitWidthConst(bits)()
        out = quantizer(given) if ours else brevitas(scale, zero, width, given)
        out.backward(torch.tensor(grad))
        results.append((out.detach(), given.grad, scale.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_one_signed_bit_is_refused():
    for role in ("weight", "input"):
        with pytest.raises(ConfigError) as error:
            build_quantizer("lsq", 1, True, role=role)
        assert error.value.key == "bits"
    build_quantizer("lsq", 1, False)
