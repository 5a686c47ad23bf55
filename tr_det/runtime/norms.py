"""Running statistics of batch norms where several processes train.

Each process gathers its own from its share of the data, and only the first one's are saved. So an
evaluation in which each process takes a part of the images must not use each one's own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor, nn

from tr_det.runtime.processes import processes, take_from_first


def share_statistics(model: nn.Module) -> None:
    """Give every process the first one's, which are those of the checkpoint."""
    take_from_first(_statistics(model))


def average_statistics(model: nn.Module) -> None:
    """Give every process the mean over all of them; each has measured its share of the data."""
    if processes() > 1:
        for statistic in _statistics(model):
            dist.all_reduce(statistic)
            statistic /= processes()


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            yield from (module.running_mean, module.running_var)
