"""The compiled kernels against torch operations: the same floats, bit for bit."""

import math

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from tr_det.core import QuantConfig, quantize_model
from tr_det.core.ops import Grid, fixed_grid_codes
from tr_det.core.ops.build import library
from tr_det.core.ops.fixed_grid_compiled import (
    FEW,
    gradients_compiled,
    kernels_for,
    quantize_compiled,
    recode_compiled,
)
from tr_det.core.ops.fixed_grid_cpu import gradients_cpu
from tr_det.core.ops.fixed_grid_plain import gradients_plain, quantize_plain

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler")

GRIDS = [(1, True), (1, False), (2, True), (4, False), (4, True), (8, True), (8, False)]
ODD = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, math.inf, -math.inf]


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def sample(count, grid, scale, seed=0):
    """Return values around all codes, ties among them, and odd ones."""
    generator = torch.Generator().manual_seed(seed)
    half_codes = torch.randint(2 * grid.alpha - 3, 2 * grid.beta + 4, (count,), generator=generator)
    near = half_codes * (scale / grid.gamma / 2)
    x = torch.where(torch.rand(count, generator=generator) < 0.5, near, near * 1.0000001)
    x[: len(ODD)] = torch.tensor(ODD)[:count]
    return x


def bits_of(x):
    """Return floats as integers: -0.0 is not 0.0, and NaN is equal to itself."""
    return x.view(torch.int32)


@pytest.mark.parametrize("count", [0, 1, 17, FEW, FEW + 1, 3 * FEW + 5])
@pytest.mark.parametrize(("bits", "signed"), GRIDS)
def test_values_gradients_and_codes_are_those_of_torch_operations(
    bits, signed, count, threads
) -> None:
    grid, scale = Grid.of(bits, signed), torch.tensor(0.7)
    x = sample(count, grid, 0.7)
    if count > FEW and threads > 1 and not library().is_parallel():
        pytest.skip("the compiler has no OpenMP")
    assert kernels_for(x, scale) is not None
    grad = torch.randn(count, generator=torch.Generator().manual_seed(1))
    values = quantize_compiled(x, scale, grid)
    assert torch.equal(bits_of(values), bits_of(quantize_plain(x, scale, grid)))
    grad_x, grad_scale = gradients_compiled(grad, x, scale, grid, True)
    torch_x, torch_scale = gradients_cpu(grad, x, scale, grid, True)
    assert torch.equal(bits_of(grad_x), bits_of(torch_x))
    assert torch.equal(bits_of(grad_scale), bits_of(torch_scale))
    old = fixed_grid_codes(sample(count, grid, 0.7, seed=2), scale, grid)
    new, codes = fixed_grid_codes(x, scale, grid), old.clone()
    assert int(recode_compiled(x, scale, grid, codes)) == int((new != old).sum())
    assert torch.equal(codes, new)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-12, 1e33, 3e38, math.inf, math.nan])
@pytest.mark.parametrize(("bits", "signed"), GRIDS)
def test_odd_scales_and_nan(bits, signed, scale) -> None:
    grid, s = Grid.of(bits, signed), torch.tensor(scale)
    x, grad = torch.tensor([*ODD, math.nan, 1e-9, -1.0, 1.0]), torch.ones(13)
    torch.testing.assert_close(
        quantize_compiled(x, s, grid), quantize_plain(x, s, grid), rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(
        gradients_compiled(grad, x, s, grid, False),
        gradients_plain(grad, x, s, grid, False),
        rtol=0,
        atol=0,
        equal_nan=True,
    )


def test_what_the_kernels_are_not_given() -> None:
    x, scale = torch.rand(4, 6), torch.tensor(0.5)
    assert kernels_for(x, scale, x.clone()) is not None
    assert kernels_for(x.t(), scale, x.t().clone()) is not None
    assert kernels_for(x[:, ::2], scale) is None
    assert kernels_for(x, scale, x.t().reshape(4, 6).t().contiguous().t()) is None
    assert kernels_for(x, scale, torch.ones(()).expand(4, 6)) is None
    assert kernels_for(x.double(), scale) is None
    assert kernels_for(x.bfloat16(), scale) is None
    assert kernels_for(x, scale.double()) is None
    assert kernels_for(x, scale, x.to(torch.int16)) is None
    assert kernels_for(torch._neg_view(x), scale) is None
    assert kernels_for(x.to("meta"), scale) is None


def _network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    quantize_model(model, QuantConfig())
    images = torch.rand(2, 3, 8, 8)
    model.train()(images)
    return model.eval(), images, torch.rand(2, 3, 8, 8)


def test_tracers_see_torch_operations() -> None:
    """A kernel that they do not see would leave uninitialised memory in what they record."""
    model, images, others = _network()
    with torch.no_grad():
        expected = model(others)
        traced = torch.jit.trace(model, images)
        torch.testing.assert_close(traced(others), expected)
        graph = make_fx(model)(images)
        torch.testing.assert_close(graph(others), expected)
