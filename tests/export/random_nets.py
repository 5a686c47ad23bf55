"""Random quantized networks for property tests of the export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tr_det.core import QuantConfig, QuantRule, quantize_model, set_scales

WEIGHT_QUANTIZERS = ("fixed_grid", "lsq", "ewgs", "uniform", "minmax", "dorefa", "qil", "qnet")
INPUT_QUANTIZERS = ("fixed_grid", "lsq", "ewgs", "pact", "running_minmax")


class Block(nn.Module):
    """Convolution, norm and activation, each of which may vary."""

    def __init__(self, draw: Draw, channels: int, stride: int) -> None:
        super().__init__()
        kernel = draw.among(1, 3, 5)
        groups = draw.among(1, 1, 2, channels)
        dilation = draw.among(1, 1, 2)
        padding = dilation * (kernel // 2)
        bias = draw.among(True, False)
        self.conv = nn.Conv2d(
            channels, channels, kernel, stride, padding, dilation, groups, bias=bias
        )
        self.norm = nn.BatchNorm2d(channels)
        nn.init.normal_(self.norm.weight, 0.5, 0.6)  # some negative
        nn.init.normal_(self.norm.bias, 0.2, 0.5)
        self.activation = draw.among(nn.ReLU(), nn.ReLU6(), nn.Identity(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class RandomNet(nn.Module):
    """A stem, blocks with shortcuts, poolings and resizing between them, and a linear layer."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        channels = draw.among(4, 8)
        self.stem = nn.Conv2d(3, channels, 3, 1, 1)
        self.blocks = nn.ModuleList()
        self.kinds = []
        for _ in range(draw.among(2, 3, 4)):
            kind = draw.among("plain", "residual", "strided", "pool", "up", "average")
            self.kinds.append(kind)
            self.blocks.append(Block(draw, channels, 2 if kind == "strided" else 1))
        self.last = nn.Linear(channels, 5)
        names = [*(f"blocks.{i}.conv" for i in range(len(self.blocks))), "last"]
        self.signed = [name for i, name in enumerate(names) if self._can_be_negative(i)]

    def _can_be_negative(self, index: int) -> bool:
        """Return whether what a block reads can be negative; the last layer reads like a block."""
        if index == 0:
            return False
        if isinstance(self.blocks[index - 1].activation, nn.Identity):
            return True
        return self.kinds[index - 1] == "residual" and self._can_be_negative(index - 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            if kind == "pool":
                x = nn.functional.max_pool2d(x, 2, ceil_mode=True)
            if kind == "average":
                x = nn.functional.avg_pool2d(x, 2, ceil_mode=True)
            y = block(x)
            if kind == "residual":
                y = y + x
            if kind == "up":
                y = nn.functional.interpolate(y, scale_factor=2.0)
            x = y
        return self.last(x.mean((2, 3)))


class Draw:
    """Choices from a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)

    def among(self, *choices):
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]


def random_case(seed: int) -> tuple[nn.Module, Tensor]:
    """Return a calibrated network in evaluation, and images for it."""
    draw = Draw(seed)
    net = RandomNet(draw)
    images = torch.rand(2, 3, draw.among(12, 17), draw.among(12, 16)) * 2 - 0.5
    weight_quantizer = draw.among(*WEIGHT_QUANTIZERS)
    act_quantizer = draw.among(*INPUT_QUANTIZERS)
    least_weight = 1 if weight_quantizer in ("fixed_grid", "ewgs", "dorefa") else 2
    doubled = weight_quantizer in ("ewgs", "dorefa", "uniform", "qnet")
    weight_bits = draw.among(*range(least_weight, (7 if doubled else 8) + 1))
    act_bits = draw.among(*range(2, 9))
    rules = [QuantRule(pattern=name, signed_input=True) for name in net.signed]
    if act_quantizer in ("ewgs", "pact") and rules:
        act_quantizer = "fixed_grid"
    config = QuantConfig(
        weight_bits=weight_bits,
        act_bits=act_bits,
        weight_quantizer=weight_quantizer,
        act_quantizer=act_quantizer,
        weight_options={"per_channel": True} if draw.among(True, False) else {},
        rules=(QuantRule(pattern="stem", skip=True), *rules),
    )
    quantize_model(net, config)
    set_scales(net, lambda: net(images))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        net(images)
    return net.eval(), images
