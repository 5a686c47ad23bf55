"""BinaryRelax: from the latent weight to its level in a straight line.

Yin et al., SIAM Journal on Imaging Sciences 2018, with the linear schedule of PARQ's code:

    w = (1 - theta) u + theta q(u),  theta = (n - start) / (end - start)
"""

from __future__ import annotations

import torch
from torch import Tensor


def softness(n: int, start: float, end: float, steepness: float) -> float:
    """Return 1 - theta; the steepness is not used."""
    return 1 - (n - start) / (end - start)


def apply(x: Tensor, nearest: Tensor, levels: Tensor, softness: float) -> Tensor:
    """Return w; shapes as of `ProxMap`.

    >>> x, nearest = torch.tensor([[-2.0, 0.7]]), torch.tensor([[-1.5, 0.5]])
    >>> [round(w, 4) for w in apply(x, nearest, nearest, 0.75)[0].tolist()]
    [-1.875, 0.65]
    """
    return torch.add(x * softness, nearest, alpha=1 - softness)
