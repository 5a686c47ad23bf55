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
from tr_det.runtime.rng import sample_states, seed_step

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


def test_the_number_of_workers_changes_nothing():
    whole = take(make_loader(), 9)
    for workers in (1, 2):
        assert take(make_loader(num_workers=workers), 5, start=4) == whole[4:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_are_grouped_as_detectron2_groups_them(sampler):
    indices = list(itertools.islice(SAMPLERS[sampler], 60))
    theirs = AspectRatioGroupedDataset([DICTS[index] for index in indices], 2)
    ours = planned_batches(enumerate(indices), 2, aspect_groups(DICTS))
    assert [[DICTS[index] for _, index in batch] for batch in ours] == list(theirs)


def test_every_visit_of_an_image_is_augmented_anew_and_seeds_differ():
    def draws(seed):
        return [sample["draws"] for batch in take(make_loader(seed=seed), 12) for sample in batch]

    assert len(set(draws(7))) == 24
    assert draws(7) == draws(7)
    assert not set(draws(7)) & set(draws(8))


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


def test_reading_here_leaves_the_random_states_alone():
    seed_step(1, 2)
    expected = (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002
    seed_step(1, 2)
    take(make_loader(), 3)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected  # noqa: NPY002


def test_states_of_steps_and_samples_are_unrelated():
    seed_step(3, 4)
    step = torch.rand(4)
    with sample_states(3, 4):
        assert not torch.equal(step, torch.rand(4))


def test_another_image_is_drawn_where_the_mapper_gives_none():
    def choosy(image):
        return noisy(image) if image["number"] != 2 else None

    loader = make_loader(mapper=choosy)
    batches = take(loader, 12)
    assert all(sample["number"] != 2 for batch in batches for sample in batch)
    assert take(loader, 6, start=6) == batches[6:]


def test_a_mapper_that_gives_nothing_is_an_error():
    with pytest.raises(RuntimeError, match="had no sample of 100 images"):
        take(make_loader(mapper=lambda image: None), 1)


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
