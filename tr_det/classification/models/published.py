"""Published weights for the ResNets of small images.

They are Yerlan Idelbayev's, for CIFAR-10 (github.com/akamaster/pytorch_resnet_cifar10, two-clause
BSD): 91.7 to 93.4 % on images that are normalised by ImageNet's mean and deviation. His networks
have no norm on the pooled features; ours begins as the identity.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tr_det.classification.config.keys import LIBRARY
from tr_det.classification.models.resnet_cifar import ResNetCIFAR
from tr_det.core.errors import check

URL = (
    "https://github.com/akamaster/pytorch_resnet_cifar10/raw/"
    "d5489e8995e81e91ce6b1d69dcc98ad579b0b153/pretrained_models/"
)
FILES = {
    20: "resnet20-12fca82f.th",
    32: "resnet32-d509ac18.th",
    44: "resnet44-014dd654.th",
    56: "resnet56-4bfd9763.th",
}
"""Depth -> file, whose name has the beginning of its SHA-256."""


def load_published(model: ResNetCIFAR) -> None:
    """Load the published weights into a network, in place.

    Raises:
        ConfigError: there are none for its depth, width, channels or classes.
        OSError: they cannot be fetched.
    """
    depth = 2 * len(model.blocks) + 2
    size = (model.conv1.weight.shape[:2], model.fc.out_features)
    fits = depth in FILES and size == ((16, 3), 10)
    allowed = f"a checkpoint, but for depths {[*FILES]} of width 16, colour images and 10 classes "
    allowed += "(for others model.new_last_layer true)"
    check("weights", LIBRARY, fits, allowed)
    try:
        stored = torch.hub.load_state_dict_from_url(
            URL + FILES[depth], map_location="cpu", check_hash=True, weights_only=True
        )
    except RuntimeError as error:  # another hash
        raise OSError(str(error)) from None
    model.load_state_dict({**model.state_dict(), **_renamed(stored["state_dict"], depth)})


def _renamed(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return published weights under the names of `ResNetCIFAR`."""
    blocks = (depth - 2) // 6

    def place(found: re.Match[str]) -> str:
        return f"blocks.{(int(found[1]) - 1) * blocks + int(found[2])}."

    own = {}
    for key, value in state.items():
        name = re.sub(r"^layer(\d)\.(\d+)\.", place, key.removeprefix("module."))
        own[name.replace("linear.", "fc.")] = value
    return own
