"""Samples of a seeded stream: each has a place, which seeds its augmentation.

The batches of a stream are planned on places alone, before anything is read, so that the first
batch wanted can be any. What a batch holds depends neither on the number of workers nor on how
often a run was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tr_det.runtime.processes import begin_worker
from tr_det.runtime.rng import restored_states, seed_sample

Place = tuple[int, int]
"""Number of a sample in the stream of all processes, and its index in the dataset."""

MAX_TRIES = 100


class SeededSamples(Dataset[Any]):
    """A dataset's samples, the random states set by their places in the stream.

    Args:
        dataset: by index.
        seed: of the augmentation, >= 0.
        mapper: makes a sample of an item; None from it means that another item is to be taken.
    """

    def __init__(self, dataset: Any, seed: int, mapper: Callable[[Any], Any] | None = None) -> None:
        self.dataset, self.seed, self.mapper = dataset, seed, mapper

    def __getitem__(self, place: Place) -> Any:
        """Return the sample at a place."""
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[Place]) -> list[Any]:
        """Return a batch, as torch's DataLoader asks for it.

        Saving and restoring the random states takes as long as reading a small image, so it is done
        once a batch.
        """
        with restored_states():
            return [self._sample(*place) for place in places]

    def _sample(self, number: int, index: int) -> Any:
        """Return the sample at a place, or if the mapper gives None, of an item drawn for it."""
        for attempt in range(MAX_TRIES):
            seed_sample(self.seed, number, attempt)
            if attempt:
                index = int(torch.randint(len(self.dataset), ()))
            item = self.dataset[index]
            sample = self.mapper(item) if self.mapper else item
            if sample is not None:
                return sample
        raise ValueError(f"no sample could be made of {MAX_TRIES} images of the dataset in a row")


def load_batches(
    samples: SeededSamples, batches: Iterator[list[Place]], workers: int, **options: Any
) -> Iterator[Any]:
    """Yield the samples of planned batches; reads nothing before the first one is asked for.

    Args:
        samples: of the stream.
        batches: places of each batch.
        workers: processes that read; 0 reads in this one.
        **options: of torch's DataLoader.
    """
    yield from DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=begin_worker,
        # Its own, because a loader draws a number when it starts.
        generator=torch.Generator(),
        **options,
    )
