"""One-dimensional k-means (Lloyd's algorithm), without randomness."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 50


def cluster_centres(rows: Tensor, count: int, rounds: int = ROUNDS) -> Tensor:
    """Return the centres of each row's clusters, ascending.

    The first centres are quantiles of the distinct numbers, so that repeated numbers (the zeros
    after a ReLU) do not take two clusters. Each round moves every centre to the mean of the numbers
    nearest to it; a centre without any stays. Centres coincide where a row has fewer distinct
    numbers than clusters.

    Args:
        rows: shape (rows, numbers), floating point, finite, with at least one number.
        count: clusters.
        rounds: iterations.

    Returns:
        Shape (rows, count), float64.

    >>> numbers = torch.tensor([[0.0, 0, 0, 0, 0.1, 0.9, 1.1, 7.0], [3.0, 3, 3, 3, 3, 3, 3, 4]])
    >>> [[round(c, 3) for c in row] for row in cluster_centres(numbers, 3).tolist()]
    [[0.02, 1.0, 7.0], [3.0, 4.0, 4.0]]
    """
    ordered = rows.double().sort(1).values.contiguous()
    place = torch.zeros_like(ordered, dtype=torch.int64)  # among the distinct numbers
    place[:, 1:] = (ordered.diff(dim=1) > 0).cumsum(1)
    parts = (torch.arange(count, device=rows.device, dtype=torch.float64) + 0.5) / count
    wanted = (parts * (place[:, -1:] + 1)).long()
    centres = ordered.gather(1, torch.searchsorted(place, wanted))
    sums = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))
    first = torch.zeros_like(wanted[:, :1])
    last = torch.full_like(first, ordered.shape[1])
    for _ in range(rounds):
        cuts = torch.searchsorted(ordered, (centres[:, 1:] + centres[:, :-1]) / 2)
        edges = torch.cat((first, cuts, last), 1)
        sizes = edges.diff(dim=1)
        means = sums.gather(1, edges).diff(dim=1) / sizes.clamp_min(1)
        centres = torch.where(sizes > 0, means, centres)
    return centres
