"""Images in folders, one for each class: ImageNet's, and a user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from PIL import Image
from torch import Tensor

from tr_det.classification.config.keys import DataConfig
from tr_det.classification.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Data,
    Images,
    Normalisation,
    composed,
    normalisation,
    shifted_and_flipped,
)
from tr_det.classification.data.pixels import LoadedImages, read_pixels
from tr_det.core.errors import ConfigError, check
from tr_det.export.images import IMAGE_SUFFIXES, opened

SMALL = 64
"""Largest side of images that are kept in memory, and augmented as CIFAR's are, px."""

_LAYOUT = "a folder with train/ and {} in it, each with one folder of images per class"


def imagenet(config: DataConfig) -> Data:
    """Return ``train/CLASS`` and ``val/CLASS`` with ImageNet's crops, of 224 px unless given."""
    return _cropped(config, "val", config.image_size or 224)


def folders(config: DataConfig) -> Data:
    """Return ``train/CLASS`` and ``test/CLASS``, or ``val/CLASS``, of a user's own images.

    Up to 64 px they are read once, and shifted and flipped as CIFAR's, above that cropped as
    ImageNet's.

    Raises:
        ConfigError: a folder is missing, the classes of the two differ, or images that are not
            square get no size.
    """
    part = "test" if (Path(config.root) / "test").is_dir() else "val"
    size = config.image_size or _side(_listed(config.root, part, None))
    return (_small if size <= SMALL else _cropped)(config, part, size)


def _small(config: DataConfig, part: str, size: int) -> Data:
    from torchvision import transforms

    scale = transforms.InterpolationMode(config.interpolation)
    whole = transforms.Compose([transforms.Resize(size, scale), transforms.CenterCrop(size)])
    found = _normalisation(config)

    @functools.cache
    def read(part: str) -> tuple[Tensor, list[int]]:
        listed = _listed(config.root, part, whole)
        return read_pixels(listed, size), listed.targets

    def images(part: str, steps: list[Any]) -> Images:
        return LoadedImages(*read(part), steps, found)

    return _data(config, part, size, size, images, shifted_and_flipped(size), [])


def _cropped(config: DataConfig, part: str, size: int) -> Data:
    from torchvision import transforms

    scale = transforms.InterpolationMode(config.interpolation)
    augment = [
        transforms.RandomResizedCrop(size, interpolation=scale),
        transforms.RandomHorizontalFlip(),
    ]
    shorter = int(size / config.crop_ratio)  # 256 of 224, usually
    plain = [transforms.Resize(shorter, scale), transforms.CenterCrop(size)]
    found = _normalisation(config)

    def images(part: str, steps: list[Any]) -> Images:
        return cast(Images, _listed(config.root, part, composed(steps, found)))

    return _data(config, part, size, shorter, images, augment, plain)


def _data(
    config: DataConfig,
    part: str,
    size: int,
    shorter: int,
    images: Callable[[str, list[Any]], Images],
    augment: list[Any],
    plain: list[Any],
) -> Data:
    classes = _classes(config.root, part)

    def train(steps: list[Any]) -> Images:
        apart = sorted({*_classes(config.root, "train")} ^ {*classes})[:5]
        allowed = f"a folder whose train/ and {part}/ have folders of the same names"
        check("data.root", config.root, not apart, f"{allowed}; only one has {apart}")
        return images("train", steps)

    return Data(
        load_train=lambda: train(augment),
        load_plain=lambda: train(plain),
        test=images(part, plain),
        classes=tuple(classes),
        channels=3,
        image_size=size,
        shorter_side=shorter,
        normalisation=_normalisation(config),
    )


def _normalisation(config: DataConfig) -> Normalisation:
    return normalisation(config, (IMAGENET_MEAN, IMAGENET_STD))


def _listed(root: str, part: str, transform: Callable[[Any], Any] | None) -> Any:
    from torchvision.datasets import ImageFolder

    with _explained(root, part) as folder:
        return ImageFolder(folder, transform, loader=read_image, is_valid_file=_is_image)


def _is_image(path: str) -> bool:
    """Return whether predictions take it too; macOS leaves ``._x.jpg``, which is none."""
    name = Path(path).name
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _classes(root: str, part: str) -> list[str]:
    from torchvision.datasets.folder import find_classes

    with _explained(root, part) as folder:
        classes, _ = find_classes(folder)
        if len(classes) < 2:
            raise FileNotFoundError(f"only {classes} in {folder}; two or more are needed")
        return classes


@contextmanager
def _explained(root: str, part: str) -> Iterator[str]:
    """Yield a part's folder; say what it must be where torchvision finds no class or no image."""
    folder = Path(root) / part
    allowed = _LAYOUT.format("test/" if part == "test" else "val/")
    if not folder.is_dir():
        what = f"it has no {part}/" if Path(root).is_dir() else "it does not exist"
        raise ConfigError("data.root", root, f"{allowed}; {what}")
    try:
        yield str(folder)
    except FileNotFoundError as error:
        raise ConfigError("data.root", root, f"{allowed} ({error})") from None


def read_image(path: str) -> Image.Image:
    """Return an image in colours, upright, as exported models are given it.

    Raises:
        OSError: it cannot be read; names the file.
    """
    return opened(path).convert("RGB")


def _side(test: Any) -> int:
    """Return the side of the first image, px."""
    image, _ = test[0]
    fits = image.width == image.height
    check("data.image_size", 0, fits, f"given: images are not square ({test.samples[0][0]})")
    return int(image.width)
