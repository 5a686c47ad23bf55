import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

from tr_det.detection import QuantTrainer
from tr_det.detection.data.loader import (
    TrainLoader,
    aspect_groups,
    enumerated,
    planned_batches,
    reseeded,
)

SIZES = [(3, 2), (2, 3), (2, 2), (5, 1), (1, 5), (4, 3), (3, 4)]
DICTS = [{"number": n, "width": w, "height": h} for n, (w, h) in enumerate(SIZES)]
SAMPLERS = {
    "all": TrainingSampler(len(DICTS), seed=1),
    "in order": TrainingSampler(len(DICTS), shuffle=False, seed=1),
    "repeated": RepeatFactorTrainingSampler(torch.linspace(1, 2.5, len(DICTS)), seed=1),
    "subset": RandomSubsetTrainingSampler(len(DICTS), 0.5, seed_shuffle=1, seed_subset=1),
}


def noisy(image):
    """Map a dict to itself with a draw from each random state."""
    draws = (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002
    return {**image, "draws": draws}


def make_loader(sampler="all", mapper=noisy, **options):
    options = {"seed": 7, "aspect_ratio_grouping": True, **options}
    return TrainLoader(DICTS, mapper, SAMPLERS[sampler], 2, **options)


def take(loader, count, start=0):
    loader.start = start
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("grouped", [True, False])
def test_batches_from_any_start_are_those_of_the_whole_stream(sampler, grouped):
    whole = take(make_loader(sampler, aspect_ratio_grouping=grouped), 12)
    for start in (1, 5, 11):
        rest = take(make_loader(sampler, aspect_ratio_grouping=grouped), 12 - start, start)
        assert rest == whole[start:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_are_grouped_as_detectron2_groups_them(sampler):
    indices = list(itertools.islice(SAMPLERS[sampler], 60))
    theirs = AspectRatioGroupedDataset([DICTS[index] for index in indices], 2)
    ours = planned_batches(enumerate(indices), 2, aspect_groups(DICTS))
    assert [[DICTS[index] for _, index in batch] for batch in ours] == list(theirs)


def test_subset_and_order_follow_the_seed():
    for sampler in ("all", "repeated", "subset"):
        first, again, other = (
            list(itertools.islice(reseeded(SAMPLERS[sampler], seed), 40)) for seed in (5, 5, 6)
        )
        assert first == again != other


def test_which_images_a_subset_holds_follows_the_seed():
    subsets = {
        frozenset(itertools.islice(reseeded(SAMPLERS["subset"], seed), 3)) for seed in range(6)
    }
    assert len(subsets) > 3


def test_samples_are_numbered_over_all_processes(monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    numbers = []
    for rank in (0, 1):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        numbers.append([number for number, _ in enumerated(range(4))])
    assert numbers == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_reseeded_subset_has_the_same_size():
    for size, ratio in itertools.product(range(10, 30), (0.1, 0.3, 0.57, 1.0)):
        sampler = RandomSubsetTrainingSampler(size, ratio, seed_shuffle=1, seed_subset=1)
        assert reseeded(sampler, 4)._size_subset == sampler._size_subset


def test_images_of_unknown_size_cannot_be_grouped():
    with pytest.raises(ValueError, match=r"ASPECT_RATIO_GROUPING=True: .* no 'width'; must be F"):
        aspect_groups([{"height": 3}])


def test_a_batch_size_that_cannot_be_shared_out_is_refused(make_config):
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH=0: must be a positive multiple"):
        QuantTrainer.build_train_loader(make_config("SOLVER.IMS_PER_BATCH", 0))


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_the_configs_sampler_is_used_and_continued(make_config, name):
    cfg = make_config("DATALOADER.SAMPLER_TRAIN", name, "DATALOADER.REPEAT_THRESHOLD", 0.5)
    loader = QuantTrainer.build_train_loader(cfg)
    assert type(loader.sampler).__name__ == name
    names = [[s["file_name"] for s in batch] for batch in take(loader, 8)]
    assert names[3:] == [[s["file_name"] for s in batch] for batch in take(loader, 5, start=3)]
