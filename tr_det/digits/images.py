"""The embedded classification data: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NUM_CLASSES = 10


@dataclass(frozen=True)
class DigitImages:
    """Images and labels of a fixed, stratified split.

    Attributes:
        train_images: (N, 1, 8, 8) float32, normalised by the training images' mean and deviation.
        train_labels: (N,) int64.
        test_images: like the training images.
        test_labels: like the training labels.
        mean: of the training images' pixels, which were 0 to 1 before.
        std: likewise.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: float
    std: float


def load_digit_images(test_share: float = 0.25) -> DigitImages:
    """Load the digits.

    Args:
        test_share: share of each class that is held out, in (0, 1).

    Raises:
        ValueError: if test_share is out of range.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}: must be in (0, 1)")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy((digits.images / 16.0).astype(np.float32)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = torch.from_numpy(held_out(digits.target, test_share))
    mean, std = images[~test].mean(), images[~test].std()
    images = (images - mean) / std
    return DigitImages(
        images[~test], labels[~test], images[test], labels[test], mean.item(), std.item()
    )


def held_out(labels: np.ndarray, share: float) -> np.ndarray:
    """Return which digits are kept out of training: a share of each class, whatever the run's seed.

    Args:
        labels: (N,) class of each digit.
        share: share of each class, in (0, 1).

    Returns:
        (N,) bool.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    generator = np.random.default_rng(1797)
    for label in range(NUM_CLASSES):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(share * len(members))]] = True
    return chosen
