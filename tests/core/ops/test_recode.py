"""Codes brought up to date in place, and SGD by blocks, against the plain ways."""

import pytest
import torch

from tr_det.core.ops import (
    Grid,
    SGDOptions,
    blocks_fit,
    fixed_grid_codes,
    fixed_grid_recode_,
    sgd_step_,
)
from tr_det.core.ops import recode as module

GRIDS = [(1, True), (2, True), (4, True), (8, True), (1, False), (4, False), (8, False)]
LAYOUTS = {
    "flat": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "with gaps": lambda x: torch.stack([x, x], -1)[..., 0],
    "transposed": lambda x: x.transpose(0, 1),
    "empty": lambda x: x[:0],
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """So that a tensor has several, and a last one that is not full."""
    monkeypatch.setattr(module, "BLOCK", 100)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "signed"), GRIDS)
def test_recode_gives_the_codes_and_how_many_differ(bits, signed, dtype, layout) -> None:
    generator = torch.Generator().manual_seed(0)
    grid, scale = Grid.of(bits, signed), torch.tensor(0.8)
    x, before = (
        LAYOUTS[layout](torch.randn(6, 5, 4, 3, generator=generator).to(dtype)) for _ in range(2)
    )
    codes = fixed_grid_codes(before, scale, grid)
    expected = fixed_grid_codes(x, scale, grid)
    differ = int((codes != expected).sum())
    kept = x.clone()
    assert int(fixed_grid_recode_(x, scale, grid, codes)) == differ
    assert torch.equal(codes, expected)
    assert codes.dtype == expected.dtype
    assert torch.equal(x, kept)
    assert int(fixed_grid_recode_(x, scale, grid, codes)) == 0


def test_other_layouts_of_codes_and_half_precision_are_not_taken_by_blocks() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert blocks_fit(x, x)
    assert not blocks_fit(x, x.to(memory_format=torch.channels_last))
    assert not blocks_fit(x.bfloat16())
    assert not blocks_fit(x[:, :, 1])
    assert not blocks_fit(x[:0])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_an_update_is_that_of_torch_sgd(momentum, maximize, weight_decay, nesterov, dampening):
    if nesterov and (momentum == 0 or dampening):
        pytest.skip("torch refuses this")
    options = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    options |= {"dampening": dampening, "maximize": maximize}
    torch.manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(7, 5, 3, 3))
    ours = theirs.detach().clone()
    grid, scale, lr = Grid.of(3, True), torch.tensor(1.5), 0.125  # exact in float32
    optimizer = torch.optim.SGD([theirs], lr=lr, foreach=False, **options)
    codes, buffer = fixed_grid_codes(ours, scale, grid), None
    for step in range(5):
        theirs.grad = torch.randn(7, 5, 3, 3)
        before = fixed_grid_codes(theirs.detach(), scale, grid)
        optimizer.step()
        if step == 0:  # the first update makes the buffer; it is not this function's
            state = optimizer.state[theirs]
            buffer = state["momentum_buffer"].clone() if momentum else None
            ours.copy_(theirs.detach())
            codes = fixed_grid_codes(ours, scale, grid)
            continue
        changed = sgd_step_(
            ours, theirs.grad, buffer, codes, torch.tensor(lr), scale, grid, SGDOptions(**options)
        )
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)
        after = fixed_grid_codes(ours, scale, grid)
        assert torch.equal(codes, after)
        assert int(changed) == int((after != before).sum()) > 0
