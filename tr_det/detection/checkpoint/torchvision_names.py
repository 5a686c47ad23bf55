"""torchvision's names of a ResNet's parameters, as Detectron2's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CLASSIFIER = ("fc.", "classifier.")
"""What a detector has no use for."""

_RENAMES = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}."),
    (r"\bbn(\d)\.", r"conv\1.norm."),
    (r"\bdownsample\.0\.", "shortcut."),
    (r"\bdownsample\.1\.", "shortcut.norm."),
)


def from_torchvision(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a torchvision classifier's state for a detector's backbone, or None if it is none.

    ResNets get Detectron2's names; MobileNetV2 has torchvision's here as well. The classifier is
    left out.
    """
    is_resnet = {"conv1.weight", "layer1.0.conv1.weight", "bn1.running_var"} <= state.keys()
    is_mobilenet = {"features.0.0.weight", "features.18.0.weight"} <= state.keys()
    if not (is_resnet or is_mobilenet):
        return None
    kept = {key: value for key, value in state.items() if not key.startswith(CLASSIFIER)}
    return {resnet_name(key): value for key, value in kept.items()} if is_resnet else kept


def resnet_name(key: str) -> str:
    """Return Detectron2's name of a torchvision ResNet's parameter, without the backbone's prefix.

    >>> resnet_name("layer1.0.bn2.running_mean"), resnet_name("conv1.weight")
    ('res2.0.conv2.norm.running_mean', 'stem.conv1.weight')
    """
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key
