"""What both sides share of timm (Wightman, *PyTorch Image Models*), which is optional.

timm is imported when a model of it is asked for. Its convolution with padding "same", whose padding
follows the size of the image as TensorFlow's, gets a quantized class then.
"""

from __future__ import annotations

import difflib
from functools import cache
from typing import Any

from torch import Tensor, nn

from tr_det.core import ConfigError, QuantConv2d, register_quant_layer
from tr_det.core.quantizers.pool import Pool, alone


def timm_library(key: str, name: str) -> Any:
    """Return the package, with its layers known to `quantize_model`.

    Args:
        key: of the config, for the error.
        name: its value.

    Raises:
        ConfigError: timm is not installed.
    """
    try:
        import timm
    except ImportError:
        allowed = "a network that needs no timm, or: pip install -e '.[timm]'"
        raise ConfigError(key, name, allowed) from None
    _register_layers()
    return timm


def pretrained_cfg(key: str, name: str) -> Any:
    """Return what timm says of a model's weights: ``mean``, ``std``, ``first_conv`` and more.

    Raises:
        ConfigError: timm is not installed, or has no such model.
    """
    timm = timm_library(key, name)
    found = None
    if timm.is_model(name):
        try:
            found = timm.get_pretrained_cfg(name)
        except RuntimeError:  # an unknown tag
            arch = name.partition(".")[0]
            tags = timm.list_pretrained(f"{arch}*")
            raise ConfigError(key, name, f"one of {[arch, *tags][:8]}") from None
    if found is None:
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; did you mean one of {near}" if near else ""
        raise ConfigError(key, name, f"a model of timm (timm.list_models()){hint}")
    return found


def make_exportable(model: nn.Module) -> None:
    """Let a model's convolutions with padding "same" compute their padding in integers, in place.

    What they compute is the same; timm's own division cannot be recorded by torch.export.
    """
    plain, ours = _register_layers()
    for module in model.modules():
        if type(module) is plain:
            module.__class__ = ours


@cache
def _register_layers() -> tuple[type[nn.Module], type[nn.Module]]:
    """Return timm's convolution with padding "same", and ours for full precision."""
    from timm.layers import Conv2dSame

    class SameConv2d(Conv2dSame):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(self.padded(x), self.weight, self.bias)

        def padded(self, x: Tensor) -> Tensor:
            pads: list[int] = []
            for dim in (1, 0):  # torch's order: the last dimension first
                size, stride = x.shape[dim - 2], self.stride[dim]
                last = size % stride or stride
                total = max((self.kernel_size[dim] - 1) * self.dilation[dim] + 1 - last, 0)
                pads += [total // 2, total - total // 2]
            return nn.functional.pad(x, pads)

    class QuantSameConv2d(QuantConv2d, SameConv2d):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            # Before the quantizer, so that an exported graph has the padding as a node of its own.
            return self._quantized(self.padded(x))

        def calibrate(self, x: Tensor, pool: Pool = alone) -> None:
            quantizer = self.input_quantizer
            if quantizer is not None and not quantizer.is_calibrated:
                quantizer.calibrate(x, pool)  # without the zeros of the padding
            super().calibrate(self.padded(x), pool)

    register_quant_layer(Conv2dSame, QuantSameConv2d)
    register_quant_layer(SameConv2d, QuantSameConv2d)
    return Conv2dSame, SameConv2d
