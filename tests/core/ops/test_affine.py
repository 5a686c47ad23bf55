"""`affine_quantize` and friends on this machine: every grid, dtype, layout and odd value."""

import math
from dataclasses import replace

import affine_oracle as oracle
import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from tr_det.core.ops import affine_codes, affine_quantize, affine_recode_, affine_values

pytestmark = pytest.mark.usefixtures("either")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_grid = pytest.mark.parametrize("affine", oracle.GRIDS.values(), ids=list(oracle.GRIDS))
FOUR_BITS = oracle.eq13(4, False)


def run(x, scale, shift, affine, upstream):
    """Return values, dL/dx, dL/dscale and dL/dshift, or None without a shift."""
    x, scale = x.detach().requires_grad_(), scale.detach().requires_grad_()
    leaves = [x, scale] if shift is None else [x, scale, shift.detach().requires_grad_()]
    out = affine_quantize(*leaves, *[None][: shift is None], affine)
    return (out, *torch.autograd.grad(out, leaves, upstream))


def noise(shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@every_grid
@every_dtype
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_values_codes_and_gradients_in_every_layout(affine, dtype, axis) -> None:
    affine, shape = replace(affine, axis=axis), (3, 4, 5, 6)
    scale, shift = oracle.parameters(affine, shape, dtype)
    x = oracle.sample(shape, dtype, 0.7, 0 if shift is None else -0.3, affine, seed=2)
    upstream = noise(shape, dtype)
    expected = oracle.Expected.of(x, scale, shift, upstream, affine)
    for name, view in oracle.layouts(x).items():
        np.testing.assert_array_equal(
            affine_codes(view, scale, shift, affine).numpy(), expected.codes, name
        )
        for other in {name, "contiguous", "permuted"}:
            grad = oracle.layouts(upstream)[other]
            actual = run(view, scale, shift, affine, grad)
            oracle.check(actual, view, expected)
            assert actual[0].stride() == view.stride() or name == "strided"


@pytest.mark.parametrize("affine", oracle.EQ13.values(), ids=list(oracle.EQ13))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.3, 77.7])
def test_every_number_of_half_precision(affine, dtype, scale) -> None:
    scale = torch.tensor(scale)
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    x = x[torch.isfinite(x)]
    upstream = torch.ones_like(x)
    expected = oracle.Expected.of(x, scale, None, upstream, affine)
    out, grad_x, _ = run(x, scale, None, affine, upstream)
    np.testing.assert_array_equal(out.detach().double().numpy(), expected.values)
    np.testing.assert_array_equal((grad_x == 0).numpy(), expected.grad_x == 0)


SHAPES = [(), (0,), (1,), (7,), (2, 0, 3, 3), (1, 1, 1, 1), (2, 3, 1)]


@pytest.mark.parametrize(
    ("shape", "axis"),
    [(shape, axis) for shape in SHAPES for axis in (None, 0, 1)[: len(shape) + 1]],
)
@pytest.mark.parametrize("name", ["1s", "4s", "lsq", "ewgs", "zero point"])
def test_any_shape(shape, axis, name) -> None:
    affine = replace(oracle.GRIDS[name], axis=axis)
    scale, shift = oracle.parameters(affine, shape, torch.float32)
    x, upstream = oracle.sample(shape, torch.float32, 0.7, -0.3, affine, seed=3), noise(shape)
    expected = oracle.Expected.of(x, scale, shift, upstream, affine)
    oracle.check(run(x, scale, shift, affine, upstream), x, expected)


def test_an_upstream_gradient_without_memory_of_its_own() -> None:
    """As the backward of `sum` gives it: one element, stride zero."""
    x, scale = noise((4, 5)), torch.tensor(0.5)
    expected = oracle.Expected.of(x, scale, None, torch.ones(4, 5), FOUR_BITS)
    actual = run(x, scale, None, FOUR_BITS, torch.ones(()).expand(4, 5))
    oracle.check(actual, x, expected)


def test_the_scale_gradient_of_a_large_tensor_of_one_sign() -> None:
    """BLAS adds in sequence: five million equal signs would drift by 1e-5 in one dot product."""
    x, upstream = noise(5_000_000).abs(), noise(5_000_000, seed=2).abs()
    scale = torch.tensor(2.0)
    expected = oracle.Expected.of(x, scale, None, upstream, FOUR_BITS)
    actual = float(run(x, scale, None, FOUR_BITS, upstream)[2])
    assert actual == pytest.approx(expected.grad_scale, rel=2e-6)


@every_grid
def test_nan_shows(affine) -> None:
    x, ones = torch.tensor([0.1, math.nan, 0.2]), torch.ones(3)
    scale, shift = oracle.parameters(affine, (3,), torch.float32)
    out, _, grad_scale, *_ = run(x, scale, shift, affine, ones)
    assert out.isnan().tolist() == [False, True, False]
    assert grad_scale.isnan()
    _, grad_x, *_ = run(x, scale, shift, affine, torch.tensor([1.0, 1.0, math.nan]))
    assert grad_x[2].isnan() or affine.estimator == "round"  # where it is clipped
    out, grad_x, grad_scale, *_ = run(torch.ones(3), scale * math.nan, shift, affine, ones)
    assert grad_scale.isnan()
    if not affine.sign:  # sign does not look at the scale
        assert out.isnan().all()


def test_double_backward_is_refused() -> None:
    x = torch.rand(3, requires_grad=True)
    y = affine_quantize(x.square(), torch.tensor(0.5), None, FOUR_BITS)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_an_input_changed_before_backward_is_an_error() -> None:
    x = torch.rand(3)
    y = affine_quantize(x, torch.tensor(0.5, requires_grad=True), None, FOUR_BITS)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_nothing_is_kept_for_backward_but_the_arguments() -> None:
    x, scale, shift = (torch.tensor(v, requires_grad=True) for v in (0.3, 0.5, 0.1))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        affine_quantize(x, scale, shift, FOUR_BITS)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (x, scale, shift)}


@pytest.mark.parametrize("name", ["1s", "ewgs"])
@pytest.mark.parametrize("axis", [None, 1])
def test_compiled_without_graph_breaks(name, axis) -> None:
    affine = replace(oracle.GRIDS[name], axis=axis)
    x = oracle.sample((4, 5), torch.float32, 0.5, 0, affine, seed=5)
    leaves = oracle.parameters(affine, (4, 5), torch.float32)
    expected = oracle.Expected.of(x, *leaves, torch.ones(4, 5), affine)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def quantize(x, scale, shift):
        return affine_quantize(x, scale, shift, affine)

    x, leaves = x.requires_grad_(), [t if t is None else t.requires_grad_() for t in leaves]
    out = quantize(x, *leaves)
    out.sum().backward()
    oracle.check((out, x.grad, *(t if t is None else t.grad for t in leaves)), x, expected)


def test_autocast_keeps_the_dtype_of_the_input() -> None:
    x, scale = torch.rand(64), torch.tensor(0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert affine_quantize(x, scale, None, FOUR_BITS).dtype == torch.float32
        assert affine_quantize(x.bfloat16(), scale, None, FOUR_BITS).dtype == torch.bfloat16


def test_fake_tensors_go_through_forward_and_backward() -> None:
    with FakeTensorMode():
        x, scale = torch.rand(8, 3, requires_grad=True), torch.ones((), requires_grad=True)
        affine_quantize(x, scale, None, FOUR_BITS).sum().backward()
        assert affine_codes(x, scale, None, FOUR_BITS).dtype == torch.uint8
    assert x.grad.shape == (8, 3)


@every_grid
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("axis", [None, 1])
def test_values_of_codes_and_how_many_codes_change(affine, dtype, axis) -> None:
    affine, shape = replace(affine, axis=axis), (3, 4, 5, 6)
    scale, shift = leaves = oracle.parameters(affine, shape, dtype)
    befores, afters = (oracle.layouts(noise(shape, dtype, seed)).values() for seed in (1, 2))
    for x, before in zip(befores, afters, strict=True):
        codes, expected = (affine_codes(t, *leaves, affine) for t in (before, x))
        for differ in (int((codes != expected).sum()), 0):
            counted = affine_recode_(x, *leaves, affine, codes)
            assert (int(counted), counted.dtype, counted.shape) == (differ, torch.int64, ())
            assert torch.equal(codes, expected)
    values = affine_values(codes, scale.requires_grad_(), shift, affine)
    ours = affine_quantize(x, *leaves, affine)
    torch.testing.assert_close(values.to(dtype), ours.to(values.dtype).to(dtype))  # of float32
    if affine.unit is None and not affine.offset:  # linear in the scale
        (grad,) = torch.autograd.grad(values.sum(), scale)
        torch.testing.assert_close((grad * scale).sum().float(), values.sum())
