"""Datasets by name: the digits, CIFAR and ImageNet folders, with their usual augmentations.

An item is ``(image, label)``, the image a (C, H, W) float32 tensor, normalised. Random transforms
draw from torch's state, which the loader sets for every sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tr_det.classification.config import DataConfig
from tr_det.classification.digits import load_digit_images

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Data:
    """A dataset's two halves.

    Attributes:
        train: with augmentation.
        test: without.
        num_classes: labels are 0 to num_classes - 1.
        channels: of an image.
    """

    train: Dataset[tuple[Tensor, int]]
    test: Dataset[tuple[Tensor, int]]
    num_classes: int
    channels: int


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
    if config.image_size not in (0, 8):
        raise ValueError(f"data.image_size={config.image_size}: must be 0 or 8 for digits")
    data = load_digit_images()
    return Data(
        ShiftedDigits(data.train_images, data.train_labels, shift=True),
        ShiftedDigits(data.test_images, data.test_labels, shift=False),
        num_classes=10,
        channels=1,
    )


def _cifar(num_classes: int) -> Callable[[DataConfig], Data]:
    def build(config: DataConfig) -> Data:
        from torchvision import datasets, transforms

        size = config.image_size or 32
        convert = [transforms.ToTensor(), transforms.Normalize(CIFAR_MEAN, CIFAR_STD)]
        resize = [] if size == 32 else [transforms.Resize(size)]
        augment = [
            transforms.RandomCrop(size, padding=size // 8),
            transforms.RandomHorizontalFlip(),
        ]
        kind = datasets.CIFAR10 if num_classes == 10 else datasets.CIFAR100

        def half(train: bool) -> Dataset[tuple[Tensor, int]]:
            steps = [*resize, *(augment if train else []), *convert]
            try:
                return kind(config.root, train, transforms.Compose(steps), download=config.download)
            except RuntimeError:
                raise ValueError(
                    f"data.root={config.root!r}: must be a folder with CIFAR-{num_classes} in "
                    "torchvision's layout, or set data.download true"
                ) from None

        return Data(half(True), half(False), num_classes, channels=3)

    return build


def _imagenet(config: DataConfig) -> Data:
    from torchvision import datasets, transforms

    size = config.image_size or 224
    convert = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    augment = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    # The usual 256 to 224, at any size.
    plain = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    halves = []
    for name, steps in (("train", augment), ("val", plain)):
        folder = Path(config.root) / name
        if not folder.is_dir():
            raise ValueError(
                f"data.root={config.root!r}: must have a folder {name}/ with one folder of images "
                "per class"
            )
        halves.append(datasets.ImageFolder(str(folder), transforms.Compose([*steps, *convert])))
    train, test = halves
    if train.classes != test.classes:
        raise ValueError(
            f"data.root={config.root!r}: train/ and val/ must have folders of the same names"
        )
    return Data(train, test, len(train.classes), channels=3)


DATASETS: dict[str, Callable[[DataConfig], Data]] = {
    "digits": _digits,
    "cifar10": _cifar(10),
    "cifar100": _cifar(100),
    "imagenet": _imagenet,
}


def load_data(config: DataConfig) -> Data:
    """Return the dataset that the config names.

    Raises:
        ValueError: unknown name, or files that are not there.
    """
    if config.name not in DATASETS:
        raise ValueError(f"data.name={config.name!r}: must be one of {sorted(DATASETS)}")
    return DATASETS[config.name](config)
