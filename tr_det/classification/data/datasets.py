"""Datasets by name, and the part of one that is held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tr_det.classification.config.keys import DataConfig
from tr_det.classification.data.folders import folders, imagenet
from tr_det.classification.data.images import Data
from tr_det.classification.data.library import LIBRARIES
from tr_det.core.errors import check, check_among
from tr_det.digits.images import NUM_CLASSES, load_digit_images

DIGIT_SIDE = 8


class ShiftedDigits(Dataset[tuple[Tensor, int]]):
    """Digits, for training shifted by up to one pixel: all that 8 x 8 pixels bear."""

    def __init__(self, images: Tensor, labels: Tensor, shift: bool) -> None:
        self.images, self.labels, self.shift = images, labels, shift

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return image and label."""
        image = self.images[index]
        if self.shift:
            down, right = torch.randint(-1, 2, (2,)).tolist()
            image = torch.roll(image, (down, right), dims=(1, 2))
        return image, int(self.labels[index])


def _digits(config: DataConfig) -> Data:
    fits = config.image_size in (0, DIGIT_SIDE)
    check("data.image_size", config.image_size, fits, f"0 or {DIGIT_SIDE} for digits")
    check("data.mean", config.mean, not config.mean, "[] for digits, which have their own")
    data = load_digit_images()
    return Data(
        load_train=lambda: ShiftedDigits(data.train_images, data.train_labels, shift=True),
        load_plain=lambda: ShiftedDigits(data.train_images, data.train_labels, shift=False),
        test=ShiftedDigits(data.test_images, data.test_labels, shift=False),
        classes=tuple(map(str, range(NUM_CLASSES))),
        channels=1,
        image_size=DIGIT_SIDE,
        shorter_side=DIGIT_SIDE,
        normalisation=((data.mean,), (data.std,)),
    )


DATASETS: dict[str, Callable[[DataConfig], Data]] = {
    "digits": _digits,
    **LIBRARIES,
    "folders": folders,
    "imagenet": imagenet,
}


def load_data(config: DataConfig) -> Data:
    """Return the dataset that the config names.

    With ``data.hold_out`` a share of the training images is tested on and not trained on.

    Raises:
        ConfigError: unknown name, or files that are not there.
    """
    check_among("data.name", config.name, DATASETS)
    data = DATASETS[config.name](config)
    channels = len(data.normalisation[0])
    allowed = f"{data.channels} numbers, one for each channel, or []"
    check("data.mean", config.mean, channels == data.channels, allowed)
    return _held_out(data, config.hold_out) if config.hold_out else data


def _held_out(data: Data, share: float) -> Data:
    """Return data whose test images are some of the training images, the same ones every time."""
    plain = data.load_plain()
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0)).tolist()  # type: ignore[arg-type]
    held = round(share * len(order))
    allowed = f"0, or a share that is at least one of {len(order)} images"
    check("data.hold_out", share, held > 0, allowed)
    rest = sorted(order[held:])
    return dataclasses.replace(
        data,
        load_train=lambda: Subset(data.load_train(), rest),
        load_plain=lambda: Subset(plain, rest),
        test=Subset(plain, sorted(order[:held])),
    )
