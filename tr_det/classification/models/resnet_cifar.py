"""ResNet for small images: ResNet-20 and others of 6n + 2 layers, as low-bit papers train on CIFAR.

He et al., *Deep Residual Learning*, CVPR 2016, section 4.2, with the details of the EWGS and TR
papers' code line: no convolution in shortcuts (subsampled, zero-padded channels: option A), a
batch norm on the pooled features, ReLU after the first norm and after each addition. ResNet-20 has
269,850 parameters for 10 classes, 275,700 for 100.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; more than the input's are zero-padded in the shortcut.
        stride: of the first convolution and the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.added = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Apply to x, (N, C, H, W)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.added:
            half = self.added // 2
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.added - half)
            )
        return F.relu(out + x)


class ResNetCIFAR(nn.Module):
    """ResNet of 6n + 2 layers for small images.

    Args:
        depth: 6n + 2: 8, 14, 20, 32, ...
        num_classes: classes, >= 2.
        in_channels: channels of the images.
        width: channels of the first stage; the others have two and four times as many.

    Raises:
        ValueError: if depth is not 6n + 2.
    """

    def __init__(
        self, depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: int = 16
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth={depth}: must be 6n + 2, e.g. 8, 14, 20, 32")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        channels = width
        for stage in range(3):
            out_channels = width * 2**stage
            for block in range(blocks):
                stride = 2 if stage and block == 0 else 1
                stages.append(BasicBlock(channels, out_channels, stride))
                channels = out_channels
        self.blocks = nn.Sequential(*stages)
        self.bn2 = nn.BatchNorm1d(channels)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (N, num_classes), of images (N, in_channels, H, W)."""
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        x = self.bn2(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        logits: Tensor = self.fc(x)
        return logits
