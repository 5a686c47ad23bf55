"""Datasets by name: the digits, CIFAR and ImageNet folders, with their usual augmentations.

An item is ``(image, label)``, the image a (C, H, W) float32 tensor, normalised. Random transforms
draw from torch's state, which the loader sets for every sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tr_det.classification.config.keys import DataConfig
from tr_det.core.errors import ConfigError, check, check_among
from tr_det.digits.images import load_digit_images
from tr_det.runtime.processes import rank, wait_for_all

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Images = Dataset[tuple[Tensor, int]]


@dataclass(frozen=True)
class Data:
    """The images to train and to test on.

    Attributes:
        load_train: gives the images to train on, with augmentation; evaluation needs none.
        load_plain: gives the same without, for ``data.hold_out``.
        test: without augmentation.
        num_classes: labels are 0 to num_classes - 1.
        channels: of an image.
        image_size: its side.
    """

    load_train: Callable[[], Images]
    load_plain: Callable[[], Images]
    test: Images
    num_classes: int
    channels: int
    image_size: int

    @cached_property
    def train(self) -> Images:
        """The images to train on, loaded at first use."""
        return self.load_train()


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
    fits = config.image_size in (0, 8)
    check("data.image_size", config.image_size, fits, "0 or 8 for digits")
    data = load_digit_images()
    return Data(
        lambda: ShiftedDigits(data.train_images, data.train_labels, shift=True),
        lambda: ShiftedDigits(data.train_images, data.train_labels, shift=False),
        ShiftedDigits(data.test_images, data.test_labels, shift=False),
        num_classes=10,
        channels=1,
        image_size=8,
    )


def _cifar(num_classes: int) -> Callable[[DataConfig], Data]:
    def build(config: DataConfig) -> Data:
        from torchvision import datasets, transforms

        size = config.image_size or 32
        scale = transforms.InterpolationMode(config.interpolation)
        convert = [transforms.ToTensor(), transforms.Normalize(CIFAR_MEAN, CIFAR_STD)]
        resize = [] if size == 32 else [transforms.Resize(size, scale)]
        augment = [
            transforms.RandomCrop(size, padding=size // 8),
            transforms.RandomHorizontalFlip(),
        ]
        kind = datasets.CIFAR10 if num_classes == 10 else datasets.CIFAR100
        if config.download:
            if rank() == 0:
                kind(config.root, download=True)
            wait_for_all()

        def images(train: bool, augmented: bool) -> Images:
            steps = [*resize, *(augment if augmented else []), *convert]
            try:
                found: Images = kind(config.root, train, transforms.Compose(steps))
            except RuntimeError:
                allowed = (
                    f"a folder with CIFAR-{num_classes} in torchvision's layout, or set "
                    "data.download true"
                )
                raise ConfigError("data.root", config.root, allowed) from None
            return found

        return Data(
            lambda: images(True, augmented=True),
            lambda: images(True, augmented=False),
            images(False, augmented=False),
            num_classes,
            channels=3,
            image_size=size,
        )

    return build


def _imagenet(config: DataConfig) -> Data:
    from torchvision import transforms

    size = config.image_size or 224
    scale = transforms.InterpolationMode(config.interpolation)
    convert = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    augment = [
        transforms.RandomResizedCrop(size, interpolation=scale),
        transforms.RandomHorizontalFlip(),
    ]
    # 256 to 224, usually.
    whole = int(size / config.crop_ratio)
    plain = [transforms.Resize(whole, scale), transforms.CenterCrop(size)]
    test = _folder(config.root, "val", transforms.Compose([*plain, *convert]))

    def load_train(steps: list[Any]) -> Images:
        train = _folder(config.root, "train", transforms.Compose([*steps, *convert]))
        if train.classes != test.classes:
            allowed = "a folder whose train/ and val/ have folders of the same names"
            raise ConfigError("data.root", config.root, allowed)
        return cast(Images, train)

    return Data(
        lambda: load_train(augment),
        lambda: load_train(plain),
        test,
        len(test.classes),
        channels=3,
        image_size=size,
    )


def _folder(root: str, name: str, transform: Callable[[Any], Any]) -> Any:
    from torchvision.datasets import ImageFolder

    folder = Path(root) / name
    if not folder.is_dir():
        allowed = "a folder with train/ and val/, each with one folder of images per class"
        raise ConfigError("data.root", root, f"{allowed}; it has no {name}/")
    return ImageFolder(str(folder), transform)


DATASETS: dict[str, Callable[[DataConfig], Data]] = {
    "digits": _digits,
    "cifar10": _cifar(10),
    "cifar100": _cifar(100),
    "imagenet": _imagenet,
}


def load_data(config: DataConfig) -> Data:
    """Return the dataset that the config names.

    With ``data.hold_out`` a share of the training images is tested on and not trained on.

    Raises:
        ConfigError: unknown name, or files that are not there.
    """
    check_among("data.name", config.name, DATASETS)
    data = DATASETS[config.name](config)
    return _held_out(data, config.hold_out) if config.hold_out else data


def _held_out(data: Data, share: float) -> Data:
    """Return data whose test images are some of the training images, the same ones every time."""
    plain = data.load_plain()
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0)).tolist()  # type: ignore[arg-type]
    held = round(share * len(order))
    rest = sorted(order[held:])
    return dataclasses.replace(
        data,
        load_train=lambda: Subset(data.load_train(), rest),
        load_plain=lambda: Subset(plain, rest),
        test=Subset(plain, sorted(order[:held])),
    )
