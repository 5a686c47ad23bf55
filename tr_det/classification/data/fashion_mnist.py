"""Fashion-MNIST: 60,000 and 10,000 grey images of 28 x 28 pixels, in four idx files."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


class FashionMNIST(datasets.FashionMNIST):
    """torchvision's, which also takes packed files (.gz), and files in the root itself.

    So they lie after Debian's `dataset-fashion-mnist` was installed.
    """

    def _check_exists(self) -> bool:
        names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in (IMAGES, LABELS)]
        return all(self._file(name) for name in names)

    def _load_data(self) -> tuple[Tensor, Tensor]:
        part = "train" if self.train else "t10k"
        image_file, label_file = (self._file(f"{part}-{kind}") for kind in (IMAGES, LABELS))
        assert image_file
        assert label_file
        images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1)
        fits = len(images) == len(labels) > 0 and labels.max() < len(self.classes)
        if not fits:
            allowed = f"a label from 0 to 9 for each of the {len(images)} images of {image_file}"
            raise OSError(f"{label_file}: must have {allowed}")
        return torch.from_numpy(images), torch.from_numpy(labels).long()

    def _file(self, name: str) -> Path | None:
        folders = (Path(self.raw_folder), Path(self.root))
        paths = [folder / f"{name}{end}" for folder in folders for end in ("", ".gz")]
        return next((path for path in paths if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the bytes of an idx file as an array.

    Args:
        path: ends in .gz where it is packed.
        dimensions: that it must have.

    Raises:
        OSError: it is no such file, or not a whole one.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        # Two zeros, 8 for unsigned bytes, the number of dimensions, and their lengths.
        if content[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError(f"no idx file of bytes with {dimensions} dimensions")
        start = 4 + 4 * dimensions
        shape = np.frombuffer(content[4:start], ">u4")
        return np.frombuffer(content[start:], np.uint8).reshape(shape).copy()
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise OSError(f"{path}: cannot be read ({error})") from None
