"""Detectron2's own convolution, quantized."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.layers import Conv2d
from torch import Tensor, nn

from tr_det.core import QuantConv2d, register_quant_layer


class QuantConv2dNorm(QuantConv2d, Conv2d):
    """`detectron2.layers.Conv2d`, quantized: convolution, then optional norm and activation."""

    norm: nn.Module | None
    activation: Callable[[Tensor], Tensor] | None

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x, (N, C, H, W)."""
        x = QuantConv2d.forward(self, x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


register_quant_layer(Conv2d, QuantConv2dNorm)
