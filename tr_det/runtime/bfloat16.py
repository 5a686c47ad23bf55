"""bfloat16 on a CPU, where oneDNN leaves parts of some gradients unset.

Seen with torch 2.14: in the backward of a padded convolution whose input is narrower than its
stride, not depthwise, parts of the weight's gradient are what the memory held before: sometimes
NaN, sometimes numbers that look right. RetinaNet's p7 is one where images have at most 64 px.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tr_det.core.errors import ConfigError


def refuse_unset_gradients(model: nn.Module, key: str, value: object) -> None:
    """Have a model's forwards in bfloat16 refuse what would give such gradients.

    Args:
        model: trained on a CPU.
        key: of the precision.
        value: that it has.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.stride[1] > 1 and module.groups == 1:
            module.register_forward_pre_hook(_refusal(name, key, value))


def _refusal(name: str, key: str, value: object) -> Any:
    def refuse(module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        width, stride = inputs[0].shape[-1], module.stride[1]
        if width < stride and module.padding != (0, 0) and torch.is_grad_enabled():
            allowed = (
                "full precision, or the images wider: on a CPU, torch leaves parts of the gradient "
                f"of {name.removeprefix('module.')} unset, whose input is {width} px wide"
            )
            raise ConfigError(key, value, allowed)

    return refuse
