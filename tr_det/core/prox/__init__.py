"""Proximal maps between a latent weight and its levels.

*PARQ: Piecewise-Affine Regularized Quantization*, Jin et al., ICML 2025, Algorithm AProx:

    u_{t+1} = u_t - eta g(w_t),  w_{t+1} = prox_t(u_{t+1})

u is the Parameter and w the weight in the forward; the gradient at w passes to u unchanged. A map
has a softness at update n of the run (from 1, w = u, to 0, the nearest level) that determines w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from tr_det.core.prox import binary_relax, parq

Apply = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class ProxMap(NamedTuple):
    """A proximal map.

    Attributes:
        softness: (n, start, end, steepness) -> 0 to 1, for start <= n < end.
        apply: (x, nearest, levels, softness) -> w. x and nearest of shape (scales, elements),
            levels (scales, codes) ascending; float32.
    """

    softness: Callable[[int, float, float, float], float]
    apply: Apply


PROX_MAPS = {
    "parq": ProxMap(parq.softness, parq.apply),
    "binary_relax": ProxMap(binary_relax.softness, binary_relax.apply),
}
"""File name -> map."""

__all__ = ["PROX_MAPS", "ProxMap"]
