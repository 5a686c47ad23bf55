"""Datasets of torchvision, which can download them: CIFAR and Fashion-MNIST."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from tr_det.classification.config.keys import DataConfig
from tr_det.classification.data.images import (
    Data,
    Images,
    Normalisation,
    composed,
    normalisation,
    shifted_and_flipped,
)
from tr_det.core.errors import ConfigError
from tr_det.runtime.processes import rank, wait_for_all

CIFAR: Normalisation = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
FASHION_MNIST: Normalisation = ((0.2860,), (0.3530,))


@dataclass(frozen=True)
class Library:
    """A dataset of torchvision.

    Attributes:
        kind: name of its class.
        side: of its images, px.
        usual: normalisation.
        module: that has the class.
    """

    kind: str
    side: int
    usual: Normalisation
    module: str = "torchvision.datasets"

    def __call__(self, config: DataConfig) -> Data:
        """Return the images, for training shifted and flipped.

        Raises:
            ConfigError: the files are not there.
        """
        from torchvision import transforms

        kind = getattr(importlib.import_module(self.module), self.kind)
        size, found = config.image_size or self.side, normalisation(config, self.usual)
        scale = transforms.InterpolationMode(config.interpolation)
        resize = [] if size == self.side else [transforms.Resize(size, scale)]
        if config.download:
            if rank() == 0:
                try:
                    kind(config.root, download=True)
                except RuntimeError as error:
                    raise OSError(f"data.download: {error}") from None
            wait_for_all()

        def images(train: bool, augmented: bool) -> Images:
            steps = [*resize, *(shifted_and_flipped(size) if augmented else [])]
            try:
                opened: Images = kind(config.root, train, composed(steps, found))
            except RuntimeError:
                allowed = (
                    f"a folder with {self.kind} in torchvision's layout, or set data.download true"
                )
                raise ConfigError("data.root", config.root, allowed) from None
            return opened

        test = images(False, augmented=False)
        return Data(
            load_train=lambda: images(True, augmented=True),
            load_plain=lambda: images(True, augmented=False),
            test=test,
            classes=tuple(test.classes),  # type: ignore[attr-defined]
            channels=len(self.usual[0]),
            image_size=size,
            shorter_side=size,
            normalisation=found,
        )


LIBRARIES: dict[str, Callable[[DataConfig], Data]] = {
    "cifar10": Library("CIFAR10", 32, CIFAR),
    "cifar100": Library("CIFAR100", 32, CIFAR),
    "fashion_mnist": Library("FashionMNIST", 28, FASHION_MNIST, f"{__package__}.fashion_mnist"),
}
