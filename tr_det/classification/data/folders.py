"""Images in folders, one for each class: ImageNet's, and a user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tr_det.classification.config.keys import DataConfig
from tr_det.classification.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Data,
    Images,
    composed,
    normalisation,
    shifted_and_flipped,
)
from tr_det.core.errors import ConfigError, check

SMALL = 64
"""Largest side of images that are augmented as CIFAR's are, px."""

_LAYOUT = "a folder with train/ and {} in it, each with one folder of images per class"


def imagenet(config: DataConfig) -> Data:
    """Return ``train/CLASS`` and ``val/CLASS`` with ImageNet's crops, of 224 px unless given."""
    return _cropped(config, "val", config.image_size or 224)


def folders(config: DataConfig) -> Data:
    """Return ``train/CLASS`` and ``test/CLASS``, or ``val/CLASS``, of a user's own images.

    Up to 64 px they are shifted and flipped as CIFAR's, above that cropped as ImageNet's.

    Raises:
        ConfigError: a folder is missing, the classes of the two differ, or images that are not
            square get no size.
    """
    part = "test" if (Path(config.root) / "test").is_dir() else "val"
    size = config.image_size or _side(_opened(config.root, part, None))
    return (_small if size <= SMALL else _cropped)(config, part, size)


def _small(config: DataConfig, part: str, size: int) -> Data:
    from torchvision import transforms

    scale = transforms.InterpolationMode(config.interpolation)
    whole = [transforms.Resize(size, scale), transforms.CenterCrop(size)]
    return _data(config, part, size, [*whole, *shifted_and_flipped(size)], whole, size)


def _cropped(config: DataConfig, part: str, size: int) -> Data:
    from torchvision import transforms

    scale = transforms.InterpolationMode(config.interpolation)
    augment = [
        transforms.RandomResizedCrop(size, interpolation=scale),
        transforms.RandomHorizontalFlip(),
    ]
    shorter = int(size / config.crop_ratio)  # 256 of 224, usually
    plain = [transforms.Resize(shorter, scale), transforms.CenterCrop(size)]
    return _data(config, part, size, augment, plain, shorter)


def _data(
    config: DataConfig, part: str, size: int, augment: list[Any], plain: list[Any], shorter: int
) -> Data:
    found = normalisation(config, (IMAGENET_MEAN, IMAGENET_STD))
    test = _opened(config.root, part, composed(plain, found))

    def load_train(steps: list[Any]) -> Images:
        train = _opened(config.root, "train", composed(steps, found))
        if train.classes != test.classes:
            apart = sorted({*train.classes} ^ {*test.classes})[:5]
            allowed = f"a folder whose train/ and {part}/ have folders of the same names"
            raise ConfigError("data.root", config.root, f"{allowed}; only one has {apart}")
        return cast(Images, train)

    return Data(
        load_train=lambda: load_train(augment),
        load_plain=lambda: load_train(plain),
        test=cast(Images, test),
        classes=tuple(test.classes),
        channels=3,
        image_size=size,
        shorter_side=shorter,
        normalisation=found,
    )


def _opened(root: str, part: str, transform: Callable[[Any], Any] | None) -> Any:
    from torchvision.datasets import ImageFolder

    folder = Path(root) / part
    allowed = _LAYOUT.format("test/" if part == "test" else "val/")
    if not folder.is_dir():
        raise ConfigError("data.root", root, f"{allowed}; it has no {part}/")
    try:
        return ImageFolder(str(folder), transform)
    except FileNotFoundError as error:  # no class, or one without images
        raise ConfigError("data.root", root, f"{allowed} ({error})") from None


def _side(test: Any) -> int:
    """Return the side of the first image, px."""
    image, _ = test[0]
    fits = image.width == image.height
    check("data.image_size", 0, fits, f"given: images are not square ({test.samples[0][0]})")
    return int(image.width)
