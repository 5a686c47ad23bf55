"""Codes brought up to date in place, against codes computed anew."""

import pytest
import torch

from tr_det.core.ops import Grid, fixed_grid_codes, fixed_grid_recode_
from tr_det.core.ops import recode as module

pytestmark = pytest.mark.usefixtures("either")

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
