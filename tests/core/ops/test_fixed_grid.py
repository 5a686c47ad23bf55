"""`fixed_grid_quantize` on this machine: every dtype, layout and odd value against NumPy.

The formulas themselves are tested in ``quantizers/test_fixed_grid_formulas.py``; here it is about
what a fused implementation could get wrong.
"""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from tr_det.core.ops import Grid, fixed_grid_codes, fixed_grid_quantize
from tr_det.core.ops.fixed_grid_cpu import excluded_bounds, gradients_cpu
from tr_det.core.ops.fixed_grid_plain import gradients_plain

_SPEC = importlib.util.spec_from_file_location("eq13", Path(__file__).with_name("eq13.py"))
eq13 = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(eq13)

pytestmark = pytest.mark.usefixtures("either")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_grid = pytest.mark.parametrize(("bits", "signed"), eq13.GRIDS)


def run(x, scale, bits, signed, upstream):
    """Return values, dL/dx and dL/ds."""
    x = x.detach().requires_grad_()
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale = torch.tensor(scale, dtype=wide, requires_grad=True)
    out = fixed_grid_quantize(x, scale, Grid.of(bits, signed))
    grad_x, grad_scale = torch.autograd.grad(out, (x, scale), upstream)
    return out, grad_x, grad_scale


@every_grid
@every_dtype
def test_values_and_gradients_in_every_layout(bits, signed, dtype) -> None:
    scale = float(np.float32(0.7))
    x = eq13.sample((3, 4, 5, 6), dtype, scale, bits, signed, seed=bits)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = eq13.Expected.of(x, scale, upstream, bits, signed)
    for name, view in eq13.layouts(x).items():
        for other, grad in eq13.layouts(upstream).items():
            assert torch.equal(view, x), (name, other)
            eq13.check(run(view, scale, bits, signed, grad), view, expected)


@every_grid
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.3, 77.7])
def test_every_number_of_half_precision(bits, signed, dtype, scale) -> None:
    scale = float(np.float32(scale))
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    x = x[torch.isfinite(x)]
    upstream = torch.ones_like(x)
    expected = eq13.Expected.of(x, scale, upstream, bits, signed)
    out, grad_x, _ = run(x, scale, bits, signed, upstream)
    np.testing.assert_array_equal(out.detach().double().numpy(), expected.values)
    np.testing.assert_array_equal((grad_x == 0).numpy(), expected.grad_x == 0)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    grid=st.sampled_from(eq13.GRIDS),
    scale=st.floats(2**-23, 2**23, width=32),
    double=st.booleans(),
)
def test_what_is_clipped_is_what_the_quotient_says(grid, scale, double) -> None:
    """Hundreds of neighbouring floats around both bounds and zero."""
    alpha, beta, gamma = eq13.bounds(*grid)
    number, integer = (np.float64, np.int64) if double else (np.float32, np.int32)
    step = number(scale) / number(gamma)
    around = np.arange(-100, 100, dtype=integer)
    centres = [number(code) * step for code in (alpha, beta) if code]
    x = np.concatenate([(centre.view(integer) + around).view(number) for centre in centres])
    tiny = np.abs(around.astype(number)) * np.finfo(number).smallest_subnormal
    x = np.concatenate([x, tiny, -tiny])
    quotient = x / step
    outside = (quotient < alpha) | (quotient > beta)
    low, high = excluded_bounds(float(step), alpha, beta, double)
    np.testing.assert_array_equal((x <= number(low)) | (x >= number(high)), outside)
    assert (low, high) == (float(number(low)), float(number(high)))


@pytest.mark.parametrize(
    "shape", [(), (0,), (0, 3), (1,), (7,), (2, 0, 3, 3), (1, 1, 1, 1), (2, 3, 1)]
)
@pytest.mark.parametrize("bits", [1, 4])
def test_any_shape(shape, bits) -> None:
    x = eq13.sample(shape, torch.float32, 0.5, bits, True, seed=3)
    upstream = torch.randn(shape)
    expected = eq13.Expected.of(x, 0.5, upstream, bits, True)
    eq13.check(run(x, 0.5, bits, True, upstream), x, expected)


def test_an_upstream_gradient_without_memory_of_its_own() -> None:
    """As `sum` hands it back: one element, stride zero."""
    x = eq13.sample((4, 5), torch.float32, 0.5, 4, True, seed=4)
    expected = eq13.Expected.of(x, 0.5, torch.ones(4, 5), 4, True)
    eq13.check(run(x, 0.5, 4, True, torch.ones(()).expand(4, 5)), x, expected)


def test_the_scale_gradient_of_a_large_tensor_of_one_sign() -> None:
    """BLAS adds in sequence: five million equal signs would drift by 1e-5 in one dot product."""
    x = torch.rand(5_000_000, generator=torch.Generator().manual_seed(0))
    upstream = torch.rand(5_000_000, generator=torch.Generator().manual_seed(1))
    expected = eq13.Expected.of(x, 2.0, upstream, 8, False)
    assert float(run(x, 2.0, 8, False, upstream)[2]) == pytest.approx(expected.grad_scale, rel=2e-6)


@every_grid
def test_nan_shows(bits, signed) -> None:
    x = torch.tensor([0.1, math.nan, 0.2])
    out, grad_x, grad_scale = run(x, 0.5, bits, signed, torch.ones(3))
    assert out.isnan().tolist() == [False, True, False]
    assert grad_scale.isnan()
    out, grad_x, grad_scale = run(x, 0.5, bits, signed, torch.tensor([1.0, 1.0, math.nan]))
    assert grad_x[2].isnan()
    if (bits, signed) != (1, True):  # sign does not look at the scale
        assert run(x, math.nan, bits, signed, torch.ones(3))[0].isnan().all()
    assert run(x, math.nan, bits, signed, torch.ones(3))[1].isnan().all()


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-12, 1e-30, 1e33, 3e38, math.inf])
def test_scales_at_the_ends_of_float32_give_what_the_plain_formula_gives(scale) -> None:
    x, grad = torch.tensor([-1.0, -1e-9, 0.0, 1e-9, 2e-9, 1.0, 1e33]), torch.ones(7)
    s = torch.tensor(scale)
    for bits, signed in eq13.GRIDS:
        ours = gradients_cpu(grad, x, s, Grid.of(bits, signed), True)
        plain = gradients_plain(grad, x, s, Grid.of(bits, signed), True)
        torch.testing.assert_close(ours, plain, equal_nan=True)


def test_double_backward_is_refused() -> None:
    x = torch.rand(3, requires_grad=True)
    y = fixed_grid_quantize(x.square(), torch.tensor(0.5), Grid.of(4, False))
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_an_input_changed_before_backward_is_an_error() -> None:
    x = torch.rand(3)
    y = fixed_grid_quantize(x, torch.tensor(0.5, requires_grad=True), Grid.of(4, False))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("learned", [False, True])
def test_nothing_is_kept_for_backward_but_the_input_and_the_scale(learned) -> None:
    x, scale = torch.rand(1000, requires_grad=True), torch.tensor(0.5, requires_grad=learned)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fixed_grid_quantize(x, scale, Grid.of(4, False))
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), scale.data_ptr()}


@pytest.mark.parametrize("bits", [1, 4])
def test_compiled_without_graph_breaks(bits) -> None:
    x = eq13.sample((4, 5), torch.float32, 0.5, bits, True, seed=5)
    expected = eq13.Expected.of(x, 0.5, torch.ones(4, 5), bits, True)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def quantize(x, scale):
        return fixed_grid_quantize(x, scale, Grid.of(bits, True))

    x.requires_grad_()
    scale = torch.tensor(0.5, requires_grad=True)
    out = quantize(x, scale)
    out.sum().backward()
    eq13.check((out, x.grad, scale.grad), x, expected)


def test_autocast_keeps_the_dtype_of_the_input() -> None:
    x = torch.rand(64)
    with torch.autocast("cpu", torch.bfloat16):
        assert fixed_grid_quantize(x, torch.tensor(0.5), Grid.of(8, False)).dtype == torch.float32
        half = fixed_grid_quantize(x.bfloat16(), torch.tensor(0.5), Grid.of(8, False))
    assert half.dtype == torch.bfloat16


def test_fake_tensors_go_through_forward_and_backward() -> None:
    with FakeTensorMode():
        x, scale = torch.rand(8, 3, requires_grad=True), torch.ones((), requires_grad=True)
        fixed_grid_quantize(x, scale, Grid.of(4, False)).sum().backward()
        assert fixed_grid_codes(x, scale, Grid.of(4, False)).dtype == torch.uint8
    assert x.grad.shape == (8, 3)
