"""What a dataset gives: images to train on, images to test on, and how they were made.

An item is ``(image, label)``, the image a (C, H, W) float32 tensor, normalised. Random transforms
draw from torch's state, which the loader sets for every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from tr_det.classification.config.keys import DataConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Images = Dataset[tuple[Tensor, int]]
Normalisation = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, of pixels from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images to train and to test on.

    Attributes:
        load_train: gives the images to train on, with augmentation; evaluation needs none.
        load_plain: gives the same without, for ``data.hold_out``.
        test: without augmentation.
        classes: names of the labels 0, 1, ...
        channels: of an image.
        image_size: its side, px.
        shorter_side: length that the shorter side of a test image got before its middle was cut
            out, px.
        normalisation: of the pixels.
    """

    load_train: Callable[[], Images]
    load_plain: Callable[[], Images]
    test: Images
    classes: tuple[str, ...]
    channels: int
    image_size: int
    shorter_side: int
    normalisation: Normalisation

    @cached_property
    def train(self) -> Images:
        """The images to train on, loaded at first use."""
        return self.load_train()

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.classes)


def normalisation(config: DataConfig, usual: Normalisation) -> Normalisation:
    """Return the config's normalisation, or the dataset's usual one where it has none."""
    return (config.mean, config.std) if config.mean else usual


def shifted_and_flipped(size: int) -> list[Any]:
    """Return the augmentation of CIFAR for images of ``size`` x ``size`` px."""
    from torchvision import transforms

    return [transforms.RandomCrop(size, padding=size // 8), transforms.RandomHorizontalFlip()]


def composed(steps: Sequence[Any], found: Normalisation) -> Callable[[Any], Tensor]:
    """Return a transform of images of PIL: steps, then conversion to a normalised tensor."""
    from torchvision import transforms

    ends = [transforms.ToTensor(), transforms.Normalize(*found)]
    transform: Callable[[Any], Tensor] = transforms.Compose([*steps, *ends])
    return transform
