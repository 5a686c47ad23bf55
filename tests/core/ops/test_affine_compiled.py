"""The compiled kernels against torch operations: the same floats, bit for bit."""

import math
from dataclasses import replace

import affine_oracle as oracle
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tr_det.core.ops import affine_codes, affine_quantize, affine_values
from tr_det.core.ops.affine_compiled import (
    FEW,
    gradients_compiled,
    kernels_for,
    quantize_compiled,
    recode_compiled,
)
from tr_det.core.ops.affine_plain import gradients_plain, quantize_plain
from tr_det.core.ops.build import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler")

ODD = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38]
every_grid = pytest.mark.parametrize("affine", oracle.GRIDS.values(), ids=list(oracle.GRIDS))


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def same(ours, theirs):
    """Compare floats as integers: -0.0 is not 0.0; NaN is NaN, whatever its bits."""
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        assert a.shape == b.shape
        assert a.stride() == b.stride() or not a.numel()
        a, b = (torch.where(t.isnan(), math.nan, t).view(torch.int32) for t in (a, b))
        assert torch.equal(a, b)


def compare(x, grad, scale, shift, affine):
    """Compare values and gradients, with and without those of scale and shift."""
    assert kernels_for(affine, x, scale, shift, grad) is not None
    arguments = (x, scale, shift, affine)
    same([quantize_compiled(*arguments)], [quantize_plain(*arguments)])
    for wanted in ((True, shift is not None), (False, False)):
        same(
            gradients_compiled(grad, *arguments, *wanted),
            gradients_plain(grad, *arguments, *wanted),
        )


def layouts(affine):
    """Return (shape, axis, memory order) triples: long, short and one-element runs per channel."""
    return [
        ((count,), None, lambda t: t) for count in (0, 17, 2 * FEW + 5)
    ] + [
        ((7, 11, 3, 5), 0, lambda t: t),
        ((7, 11, 3, 5), 1, lambda t: t),
        ((3, 37, 18, 18), 1, lambda t: t.contiguous(memory_format=torch.channels_last)),
        ((3, 37, 18, 18), 0, lambda t: t.contiguous(memory_format=torch.channels_last)),
        ((2, 50, 350), 1, lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0)),
        ((1, 33_001), 1, lambda t: t),
        ((33_001, 1), 1, lambda t: t),
        ((9, 13), -1, lambda t: t),
    ]  # fmt: skip


@every_grid
def test_values_gradients_and_codes_are_those_of_torch_operations(affine, threads) -> None:
    for shape, axis, arranged in layouts(affine):
        if threads > 1 and (math.prod(shape) <= FEW or not library().is_parallel()):
            continue
        grid = replace(affine, axis=axis)
        scale, shift = oracle.parameters(grid, shape, torch.float32)
        x = oracle.sample(shape, torch.float32, 0.7, 0 if shift is None else -0.3, grid, seed=0)
        x.view(-1)[: len(ODD)] = torch.tensor(ODD)[: x.numel()]
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        x, grad = arranged(x), arranged(grad)
        compare(x, grad, scale, shift, grid)
        old = affine_codes(grad, scale, shift, grid)
        new, codes = affine_codes(x, scale, shift, grid), old.clone()
        assert int(recode_compiled(x, scale, shift, grid, codes)) == int((new != old).sum())
        assert torch.equal(codes, new)
        values = quantize_compiled(x, scale, shift, grid)
        assert torch.equal(affine_values(codes, scale, shift, grid), values)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-12, 1e33, 3e38, math.inf, math.nan])
@every_grid
def test_odd_scales_and_nan(affine, scale) -> None:
    x = torch.tensor([*ODD, math.inf, -math.inf, math.nan, 1e-9, -1.0, 1.0])
    shift = torch.tensor(0.1) if oracle.shifts(affine) else None
    grad = torch.tensor([1.0, -1.0] * 6 + [math.nan])
    compare(x, grad, torch.tensor(scale), shift, affine)


def test_inputs_that_the_kernels_do_not_take() -> None:
    x, scale = torch.rand(4, 6), torch.tensor(0.5)
    tensor, rows = oracle.GRIDS["lsq"], replace(oracle.GRIDS["lsq"], axis=0)
    assert kernels_for(tensor, x, scale, scale, x.clone()) is not None
    assert kernels_for(tensor, x.t(), scale, None, x.t().clone()) is not None
    assert kernels_for(rows, x, torch.rand(4), torch.rand(4)) is not None
    halved, twisted = x[:, ::2], x.t().reshape(4, 6).t().contiguous().t()
    for refused in (
        (tensor, halved, scale, None),
        (tensor, x, scale, None, twisted),
        (tensor, x, scale, None, torch.ones(()).expand(4, 6)),
        (tensor, x.double(), scale, None),
        (tensor, x.bfloat16(), scale, None),
        (tensor, x, scale.double(), None),
        (tensor, x, scale, scale.double()),
        (tensor, x, scale, None, x.to(torch.int16)),
        (tensor, torch._neg_view(x), scale, None),
        (tensor, x.to("meta"), scale, None),
        (tensor, x, torch.rand(4), None),
        (rows, x, scale, None),
        (rows, x, torch.rand(6), None),
        (rows, x, torch.rand(8)[::2], None),
        (rows, x, torch.rand(4), scale),
        (rows, x, torch.rand(4), torch.rand(8)[::2]),
    ):
        assert kernels_for(*refused) is None


def test_tracers_see_torch_operations() -> None:
    """The graph of a tracer that could not see the kernel would return uninitialised memory."""
    images, others = torch.rand(2, 3, 8)
    scale, affine = torch.tensor(0.7), oracle.GRIDS["4u"]

    def quantize(x):
        return affine_quantize(x, scale, None, affine)

    traced, graph = torch.jit.trace(quantize, images), make_fx(quantize)(images)
    assert torch.equal(traced(others), quantize(others))
    assert torch.equal(graph(others), quantize(others))
