"""Latent weights that have given codes, for a file that holds codes only.

The quantizer's own centres have the codes, unless several quantizers share the weight, a code has
next to no interval, or floats round. There the interval is searched for: codes ascend with the
weight, so a bisection over the float32 numbers finds its ends, whatever the quantizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tr_det.core import Quantizer

_STEPS = 33  # halvings of all float32 numbers


@torch.no_grad()
def latents_of(
    quantizers: Sequence[Quantizer], codes: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """Return a weight that has the given codes under every one of its quantizers.

    Where there is none, or none is found because codes do not ascend, other codes result: compare.

    Args:
        quantizers: calibrated, with the weight's layers.
        codes: for each of them, integers in the weight's shape.
        dtype: of the weight.
    """
    weight = quantizers[0].centres(codes[0]).to(dtype)
    wrong = ~weight.isfinite()
    for quantizer, wanted in zip(quantizers, codes, strict=True):
        wrong |= quantizer.codes(weight) != wanted
    return (
        torch.where(wrong, _searched(quantizers, codes, dtype), weight) if wrong.any() else weight
    )


def _searched(
    quantizers: Sequence[Quantizer], codes: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """Return the middle of each element's interval; an end of it where it has one only."""
    given = [codes_.to(torch.int16) for codes_ in codes]

    def reached(x: Tensor, more: int) -> list[Tensor]:
        pairs = zip(quantizers, given, strict=True)
        return [quantizer.codes(x.to(dtype)) >= wanted + more for quantizer, wanted in pairs]

    first = _smallest(lambda x: torch.stack(reached(x, 0)).all(0), codes[0])
    last = _smallest(lambda x: torch.stack(reached(x, 1)).any(0), codes[0]) - 1
    below, above = _number(first), _number(last)
    middle = below + (above - below) / 2
    middle = torch.where(first <= -_LARGEST, above, middle)
    return torch.where(last >= _LARGEST - 1, below, middle).to(dtype)


def _smallest(holds: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Return the place of the smallest number for which an ascending condition holds, int64."""
    high = torch.full(like.shape, _LARGEST, device=like.device)
    low = -high - 1
    for _ in range(_STEPS):
        middle = (low + high) >> 1
        passed = holds(_number(middle))
        high, low = torch.where(passed, middle, high), torch.where(passed, low, middle)
    return high


_LARGEST = int(torch.tensor(torch.finfo(torch.float32).max).view(torch.int32))


def _number(place: Tensor) -> Tensor:
    """Return the float32 number at a place among all of them in order; zero is at 0."""
    sign = torch.where(place < 0, -1.0, 1.0)
    return place.abs().clamp_max(_LARGEST).to(torch.int32).view(torch.float32) * sign
