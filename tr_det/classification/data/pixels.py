"""Small images that are kept in memory: decoding a file takes longer than augmenting its pixels."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tr_det.classification.data.images import Normalisation

_SECONDS = 10
_log = logging.getLogger(__name__)


class LoadedImages(Dataset[tuple[Tensor, int]]):
    """Pixels that are augmented and normalised when they are asked for.

    Args:
        pixels: (N, C, H, W) uint8.
        labels: class of each.
        steps: torchvision's transforms of an image as uint8.
        normalisation: of the pixels.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Sequence[int],
        steps: Sequence[Any],
        normalisation: Normalisation,
    ) -> None:
        from torchvision import transforms

        self.pixels, self.labels = pixels, labels
        ends = [transforms.ConvertImageDtype(torch.float32), transforms.Normalize(*normalisation)]
        self.transform = transforms.Compose([*steps, *ends])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return image and label."""
        return self.transform(self.pixels[index]), self.labels[index]


def read_pixels(folder: Any, size: int) -> Tensor:
    """Return the images of a folder as (N, 3, size, size) uint8; says how far it is.

    Args:
        folder: torchvision's ImageFolder, which gives images of this size.
        size: their side, px.

    Raises:
        OSError: an image that cannot be read.
    """
    from torchvision.transforms.functional import pil_to_tensor

    count, told = len(folder), time.monotonic()
    pixels = torch.empty((count, 3, size, size), dtype=torch.uint8)
    for place in range(count):
        pixels[place] = pil_to_tensor(folder[place][0])
        if time.monotonic() - told > _SECONDS:
            told = time.monotonic()
            _log.info("Reading %s: %s of %s images", folder.root, f"{place:,}", f"{count:,}")
    return pixels
