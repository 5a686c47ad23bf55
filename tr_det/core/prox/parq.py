"""PARQ: piecewise-affine maps that become steps (Jin et al., ICML 2025, Section 4).

Between two neighbouring levels q_lo and q_hi with the middle c, at inverse slope r:

    w = clip(c + (u - c) / r, q_lo, q_hi)

r falls from 1 to 0 over the run, by a normalised sigmoid of steepness k:

    r = (s(f) - s(1)) / (s(0) - s(1)),  s(f) = 1 / (1 + exp(k (f - 1/2)))
    f = (n - start) / (end - start)

Deviations: the slope is scheduled by itself, not by the paper's accumulated learning rate, as by
default in its authors' code; a middle of the schedule other than 1/2 and a weight decay that
follows the slope are left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float32).tiny


def softness(n: int, start: float, end: float, steepness: float) -> float:
    """Return the inverse slope r.

    >>> [round(softness(n, 0, 100, 10.0), 6) for n in (0, 25, 50, 75)]
    [1.0, 0.929896, 0.5, 0.070104]
    """

    def falling(f: float) -> float:
        return 1 / (1 + math.exp(steepness * (f - 0.5)))

    place = falling((n - start) / (end - start))
    return max((place - falling(1.0)) / (falling(0.0) - falling(1.0)), SMALLEST)


def apply(x: Tensor, nearest: Tensor, levels: Tensor, softness: float) -> Tensor:
    """Return w; shapes as of `ProxMap`.

    >>> levels = torch.tensor([[-1.5, -0.5, 0.5, 1.5]])
    >>> x = torch.tensor([[-2.0, -1.2, 0.2, 0.7]])
    >>> [round(w, 4) for w in apply(x, x, levels, 0.5)[0].tolist()]
    [-1.5, -1.4, 0.4, 0.5]
    """
    above = torch.searchsorted(levels, x.contiguous())
    low = levels.gather(1, (above - 1).clamp_(min=0))
    high = levels.gather(1, above.clamp_(max=levels.shape[1] - 1))
    middle = (low + high) / 2
    steep = middle + (x - middle) / softness
    return torch.minimum(torch.maximum(steep, low), high)
