"""Random states as a function of what they are for, not of what ran before.

A stopped run cannot save every random state: each process has its own, only the first one writes
checkpoints, and loader workers are ahead of the training. So nothing is saved but one seed; the
states of a training step follow from (seed, step, process), those of a sample's augmentation from
(seed, place in the data stream).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

STEP, SAMPLE = 0, 1
"""First word of a key: training steps and samples draw from unrelated streams."""


def seed_step(*key: int) -> None:
    """Set the states of Python, NumPy and torch (all devices) from non-negative integers."""
    words = _seed_python_and_numpy(STEP, *key)
    torch.manual_seed(_joined(words[:2]))


@contextmanager
def sample_states(*key: int) -> Iterator[None]:
    """Set Python's, NumPy's and torch's CPU states from integers, and restore them at the end."""
    with restored_states():
        seed_sample(*key)
        yield


@contextmanager
def restored_states() -> Iterator[None]:
    """Restore Python's, NumPy's and torch's CPU states at the end."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def seed_sample(*key: int) -> None:
    """Set Python's, NumPy's and torch's CPU states from non-negative integers.

    Augmentations use no other device, and seeding devices would reach out of the sample.
    """
    words = _seed_python_and_numpy(SAMPLE, *key)
    torch.default_generator.manual_seed(_joined(words[:2]))


def _seed_python_and_numpy(*key: int) -> np.ndarray:
    words = np.random.SeedSequence(key).generate_state(8)
    random.seed(_joined(words[2:4]))
    np.random.seed(words[4:])  # noqa: NPY002  augmentations draw from the global state
    return words


def _joined(words: np.ndarray) -> int:
    return (int(words[0]) << 32) | int(words[1])
