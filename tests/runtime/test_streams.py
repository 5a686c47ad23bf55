"""Seeded streams of samples, which the loaders of detection and classification plan."""

import itertools
import random

import numpy as np
import pytest
import torch

from tr_det.runtime.rng import sample_states, seed_step
from tr_det.runtime.streams import SeededSamples, load_batches


def draws():
    """Return a number of each random state."""
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def noisy(item):
    return item, *draws()


def choosy(item):
    return None if item == 2 else noisy(item)


def take(count, start=0, seed=7, mapper=noisy, workers=0):
    """Return batches of two samples of seven items, which come again and again."""
    places = ([(n, n % 7), (n + 1, (n + 1) % 7)] for n in itertools.count(2 * start, 2))
    samples = SeededSamples(list(range(7)), seed, mapper)
    batches = load_batches(samples, places, workers, collate_fn=list)
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_neither_start_nor_workers_nor_the_callers_random_state_matter(workers):
    whole = take(9)
    seed_step(1, 2)
    assert take(5, start=4, workers=workers) == whole[4:]


def test_every_visit_of_an_item_is_augmented_differently_and_seeds_differ():
    first, other = (
        {sample[1:] for batch in take(12, seed=seed) for sample in batch} for seed in (7, 8)
    )
    assert len(first) == 24
    assert not first & other


def test_reading_in_this_process_leaves_its_random_states_alone():
    seed_step(1, 2)
    expected = draws()
    seed_step(1, 2)
    take(3)
    assert draws() == expected


def test_states_of_steps_and_samples_are_unrelated():
    seed_step(3, 4)
    step = torch.rand(4)
    with sample_states(3, 4):
        assert not torch.equal(step, torch.rand(4))


def test_another_item_is_drawn_where_the_mapper_gives_none():
    batches = take(12, mapper=choosy)
    assert all(item != 2 for batch in batches for item, *_ in batch)
    assert take(6, start=6, mapper=choosy) == batches[6:]
