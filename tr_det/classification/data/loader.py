"""Training batches as a function of the seed and the update's number, and test batches.

Epoch e is a permutation drawn from (seed, e); an image's augmentation is seeded by its place in the
stream (`tr_det.runtime.streams`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from tr_det.core.errors import check
from tr_det.runtime.processes import begin_worker
from tr_det.runtime.rng import sample_states
from tr_det.runtime.streams import Place, SeededSamples, load_batches


def planned_batches(
    count: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, processes: int = 1
) -> Iterator[list[Place]]:
    """Yield the places of one process' batches from batch ``start`` on, endlessly.

    Epochs are whole batches: the images left over are others in every epoch.

    Args:
        count: images of the dataset, at least one batch.
        batch_size: images of all processes' batches together, a multiple of ``processes``.
        seed: of the order.
        start: number of the first batch.
        rank: of this process.
        processes: how many there are.
    """
    per_epoch = count // batch_size
    number = start
    while True:
        epoch, first = divmod(number, per_epoch)
        with sample_states(seed, epoch, 1):  # no sample has this state: first tries have a 0 there
            order = torch.randperm(count).tolist()
        for batch in range(first, per_epoch):
            places = range(batch * batch_size + rank, (batch + 1) * batch_size, processes)
            # Places count the images seen, so that no two epochs share an augmentation.
            shift = epoch * per_epoch * batch_size
            yield [(shift + place, order[place]) for place in places]
            number += 1


def check_batch_size(batch_size: int, images: int, processes: int) -> None:
    """Raise ConfigError if the batch is larger than the dataset or cannot be shared out."""
    check(
        "solver.batch_size",
        batch_size,
        0 < batch_size <= images and batch_size % processes == 0,
        f"at most {images}, the number of training images, and a multiple of the number of "
        f"processes, {processes}",
    )


def train_batches(
    dataset: Any,
    batch_size: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return (images, labels) of this process from batch ``start`` on, endlessly.

    Arguments as for `planned_batches`; ``workers`` processes read the images.
    """
    batches = planned_batches(len(dataset), batch_size, seed, start, rank, processes)
    samples = SeededSamples(dataset, seed)
    return load_batches(samples, batches, workers, pin_memory=torch.cuda.is_available())


def evaluation_batches(
    dataset: Any, batch_size: int, workers: int = 0, rank: int = 0, processes: int = 1
) -> DataLoader[Any]:
    """Return this process' share of the test images, in batches."""
    share = Subset(dataset, range(rank, len(dataset), processes))
    pinned, begin = torch.cuda.is_available(), begin_worker if workers else None
    return DataLoader(
        share, batch_size, num_workers=workers, pin_memory=pinned, worker_init_fn=begin
    )
