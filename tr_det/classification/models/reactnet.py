"""ReActNet-18: the ResNet-18 of binary networks (Liu et al., *ReActNet*, ECCV 2020).

Each 3x3 convolution has a shortcut of its own (Bi-Real Net), a learnable shift before its input is
quantized (RSign) and shifts around a PReLU after it (RPReLU). The 1x1 convolutions of shortcuts
stay in full precision. With 100 classes and the stem for small images it has 11,235,044 parameters,
the 11,235K of the TR paper (S2.2).

The quantizers come from `quantize_model`, with signed inputs; so there are 2, 3 or 4 bits as well.
Deviations from the paper's release: Eq. 13's quantizer, whose gradient is one inside the clipping
range, in place of the piecewise polynomial. Deviation from the TR paper, whose binary activations
are 0 and 1: +-1, as the release has them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Shift(nn.Module):
    """Adds a learnable number to every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Shift x, (N, C, H, W)."""
        return x + self.bias


class ReActUnit(nn.Module):
    """A 3x3 convolution with shifts, norm, shortcut and activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the convolution; the shortcut pools.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.input_shift = Shift(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.activation = nn.Sequential(
            Shift(out_channels), nn.PReLU(out_channels), Shift(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x, (N, C, H, W)."""
        out: Tensor = self.bn(self.conv(self.input_shift(x))) + self.shortcut(x)
        activated: Tensor = self.activation(out)
        return activated


class ReActNet18(nn.Module):
    """ReActNet with the layers of ResNet-18.

    Args:
        num_classes: classes, >= 2.
        in_channels: channels of the images.
        small_images: 3x3 stem without pooling, as for CIFAR, instead of ImageNet's.
        width: channels of the first stage.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        small_images: bool = False,
        width: int = 64,
    ) -> None:
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        units = []
        channels = width
        for stage in range(4):
            for unit in range(4):
                stride = 2 if stage and unit == 0 else 1
                units.append(ReActUnit(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.units = nn.Sequential(*units)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (N, num_classes), of images (N, in_channels, H, W)."""
        x = self.units(self.pool(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
