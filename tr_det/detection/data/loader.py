"""Training batches as a function of the seed and the batch's number.

Detectron2's loaders start over when a run is resumed: samplers begin again, the aspect-ratio
buckets are empty, and workers draw augmentations from states of their own. Here batches come from a
planned stream (`tr_det.runtime.streams`).
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from detectron2.data.samplers import RandomSubsetTrainingSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Sampler

from tr_det.detection.data.annotations import (
    check_boxes,
    check_categories,
    log_cut_boxes,
    log_empty_boxes,
)
from tr_det.detection.data.datasets import check_annotation_file
from tr_det.detection.data.images import SkipUnreadable, check_files
from tr_det.runtime.streams import Place, SeededSamples, load_batches


class TrainLoader:
    """Batches of training samples from ``start`` on; endless.

    Nothing is read before the first batch is asked for, so ``start`` and ``seed`` may be set until
    then, and take effect at the next ``iter`` otherwise.

    Args:
        dicts: Detectron2's dataset dicts.
        mapper: makes a sample of a dict; None from it means that another image is to be taken.
        sampler: one of Detectron2's training samplers.
        batch_size: of this process.
        seed: of order and augmentation, >= 0.
        aspect_ratio_grouping: batch wide images apart from tall ones.
        num_workers: processes that read images; 0 reads in this one.

    Attributes:
        start: number of the first batch.

    Raises:
        ValueError: images are to be grouped, but their sizes are unknown.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any] | None],
        sampler: Sampler[int],
        batch_size: int,
        *,
        seed: int,
        aspect_ratio_grouping: bool = False,
        num_workers: int = 0,
    ) -> None:
        self.sampler, self.batch_size, self.seed = sampler, batch_size, seed
        self.num_workers = num_workers
        self.start = 0
        self.groups = aspect_groups(dicts) if aspect_ratio_grouping else None
        self.dataset = DatasetFromList(dicts, copy=False)
        self.mapper = mapper

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Yield batches; a generator, so that it begins with the first batch asked for."""
        places = enumerated(reseeded(self.sampler, self.seed))
        batches = planned_batches(places, self.batch_size, self.groups)
        yield from load_batches(
            SeededSamples(self.dataset, self.seed, PicklableWrapper(self.mapper)),
            itertools.islice(batches, self.start, None),
            self.num_workers,
            collate_fn=trivial_batch_collator,
        )


def planned_batches(
    places: Iterable[Place], batch_size: int, groups: Sequence[int] | None = None
) -> Iterator[list[Place]]:
    """Yield batches of one group each, in the order in which they fill up.

    >>> stream = [(0, 3), (1, 0), (2, 1), (3, 2)]
    >>> list(planned_batches(stream, 2, groups=[0, 0, 1, 1]))
    [[(1, 0), (2, 1)], [(0, 3), (3, 2)]]
    """
    waiting: dict[int, list[Place]] = {}
    for place in places:
        group = groups[place[1]] if groups is not None else 0
        batch = waiting.setdefault(group, [])
        batch.append(place)
        if len(batch) == batch_size:
            yield waiting.pop(group)


def aspect_groups(dicts: Sequence[dict[str, Any]]) -> bytes:
    """Return 0 for each wide image and 1 for others, as Detectron2 groups them."""
    try:
        return bytes(0 if image["width"] > image["height"] else 1 for image in dicts)
    except KeyError as error:
        raise ValueError(
            f"DATALOADER.ASPECT_RATIO_GROUPING=True: an image of the dataset has no {error}; "
            "must be False for it"
        ) from None


def enumerated(sampler: Iterable[int]) -> Iterator[Place]:
    """Yield a process' indices with their numbers in the stream of all processes."""
    return zip(itertools.count(comm.get_rank(), comm.get_world_size()), sampler)


def reseeded(sampler: Any, seed: int) -> Any:
    """Return the sampler with another seed; all of Detectron2's keep it in ``_seed``."""
    if isinstance(sampler, RandomSubsetTrainingSampler):
        return RandomSubsetTrainingSampler(
            sampler._size,
            # The constructor rounds ratio * size down.
            min(1.0, (sampler._size_subset + 0.5) / sampler._size),
            sampler._shuffle,
            seed_shuffle=seed,
            seed_subset=seed + 1,
        )
    sampler = copy.copy(sampler)
    sampler._seed = seed
    return sampler


def build_train_loader(cfg: CfgNode) -> Any:
    """Build the loader of ``cfg.DATASETS.TRAIN``; ``cfg.SEED`` < 0 draws a seed.

    A sampler without a seed, or a dataset that is no list, gets Detectron2's own loader, with a
    warning: it starts over when a run is resumed.
    """
    for name in cfg.DATASETS.TRAIN:
        check_annotation_file(name, scored=False)
    parts = _train_loader_from_config(cfg)
    if not isinstance(parts["dataset"], list) or not hasattr(parts["sampler"], "_seed"):
        logging.getLogger(__name__).warning(
            "This dataset or sampler cannot continue where a run stopped: a resumed run will read "
            "the data from its beginning"
        )
        # Called with all arguments, it does not look for a config.
        return build_detection_train_loader(**parts)
    names = ", ".join(cfg.DATASETS.TRAIN)
    check_files(parts["dataset"], names)
    check_boxes(parts["dataset"], names)
    check_categories(parts["dataset"], cfg)
    log_empty_boxes(parts["dataset"])
    log_cut_boxes(parts["dataset"])
    world_size = comm.get_world_size()
    if parts["total_batch_size"] < 1 or parts["total_batch_size"] % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH={parts['total_batch_size']}: must be a positive multiple of "
            f"the number of processes, {world_size}"
        )
    return TrainLoader(
        parts["dataset"],
        SkipUnreadable(parts["mapper"]),
        parts["sampler"],
        parts["total_batch_size"] // world_size,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        aspect_ratio_grouping=parts["aspect_ratio_grouping"],
        num_workers=parts["num_workers"],
    )
