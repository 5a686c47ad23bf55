"""Training batches as a function of the seed and the update's number.

Epoch e is a permutation drawn from (seed, e); an image's augmentation is seeded by its place in the
stream. So what a batch holds depends neither on the workers nor on how often a run was stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tr_det.core.errors import check
from tr_det.runtime.rng import sample_states

Place = tuple[int, int]
"""Number of a sample in the stream of all processes, and its index in the dataset."""


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
        order = _permutation(count, seed, epoch)
        for batch in range(first, per_epoch):
            places = range(batch * batch_size + rank, (batch + 1) * batch_size, processes)
            # Places count the images seen, so that no two epochs share an augmentation.
            shift = epoch * per_epoch * batch_size
            yield [(shift + place, order[place]) for place in places]
            number += 1


def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    with sample_states(seed, epoch, 1):  # three words: no sample's key
        order: list[int] = torch.randperm(count).tolist()
    return order


class SeededSamples(Dataset[tuple[Tensor, int]]):
    """A dataset's samples, the random states set by their places in the stream."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        """Return the sample at a place."""
        number, index = place
        with sample_states(self.seed, number):
            return _read(self.dataset, index)


class Share(Dataset[tuple[Tensor, int]]):
    """One process' part of a dataset."""

    def __init__(self, dataset: Any, rank: int, processes: int) -> None:
        self.dataset, self.indices = dataset, range(rank, len(dataset), processes)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a sample."""
        return _read(self.dataset, self.indices[index])


def _read(dataset: Any, index: int) -> tuple[Tensor, int]:
    """Return a sample; what is wrong with its file is told with the file's name."""
    try:
        sample: tuple[Tensor, int] = dataset[index]
    except (OSError, SyntaxError) as error:  # PIL raises the latter for some PNGs
        files = getattr(dataset, "samples", None)  # torchvision's folders
        name = files[index][0] if files else f"image {index}"
        raise OSError(f"{name}: cannot be read ({error})") from None
    return sample


class _Once:
    """A batch sampler around an iterator; DataLoader iterates over it once."""

    def __init__(self, batches: Iterator[list[Place]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Place]]:
        return self.batches


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
    """Yield (images, labels) of this process from batch ``start`` on, endlessly.

    Raises:
        ValueError: as `check_batch_size`.
    """
    check_batch_size(batch_size, len(dataset), processes)
    places = planned_batches(len(dataset), batch_size, seed, start, rank, processes)
    loader: Any = DataLoader(
        SeededSamples(dataset, seed),
        batch_sampler=_Once(places),
        num_workers=workers,
        generator=torch.Generator(),  # its own, because a loader draws a number when it starts
        pin_memory=torch.cuda.is_available(),
    )
    yield from loader


def evaluation_batches(
    dataset: Any, batch_size: int, workers: int = 0, rank: int = 0, processes: int = 1
) -> DataLoader[Any]:
    """Return this process' share of the test images, in batches."""
    share = Share(dataset, rank, processes)
    pinned = torch.cuda.is_available()
    return DataLoader(share, batch_size, num_workers=workers, pin_memory=pinned)
