"""The measured networks: full precision, with torch's fake-quantizers, and with tr_det's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantizeBase,
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
)
from torch.nn.utils import parametrize

from tr_det.classification.models.resnet_cifar import ResNetCIFAR
from tr_det.core import QUANTIZERS as REGISTRY
from tr_det.core import (
    ConfigError,
    QuantConfig,
    QuantRule,
    quantize_model,
    quantized_layers,
    set_scales,
)
from tr_det.core.quantizers import Spec

ROOT = Path(__file__).resolve().parents[2]
QUANTIZERS = ("fixed_grid", "lsq")
"""Eq. 13 as under TR scheduling, with frozen weight scales, and LSQ with learned steps."""


@dataclass(frozen=True)
class Task:
    """A model and a loss on one fixed batch.

    Attributes:
        model: in training mode.
        loss: returns the loss of a step, a 0-d tensor.
    """

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]

    def forward(self) -> Tensor:
        """Return the loss."""
        return self.loss(self.model)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make a training step."""
        optimizer.zero_grad()
        self.forward().backward()
        optimizer.step()


def variants(name: str, device: str, tiny: bool) -> dict[str, Task]:
    """Return contestant -> task; the quantized ones are W4A4 and calibrated."""
    build = _resnet20 if name == "resnet20" else _retinanet
    full, fixed_grid, lsq = (
        build(name, device, tiny, quantizer) for quantizer in ("", *QUANTIZERS)
    )
    for task in (fixed_grid, lsq):
        set_scales(task.model, task.forward)
    recomputing = replace(fixed_grid, model=copy.deepcopy(fixed_grid.model))
    quantized = [layer for layer, _ in quantized_layers(fixed_grid.model)]
    for _, layer in quantized_layers(recomputing.model):
        layer.recompute_input = True
    fake = _with_torch_fake_quantizers(full.model, quantized, device)
    tasks = {
        "full precision": full,
        "torch FakeQuantize (fused)": replace(full, model=fake),
        "tr_det W4A4": fixed_grid,
        "tr_det W4A4, recomputed inputs": recomputing,
        "tr_det W4A4, LSQ": lsq,
    }
    for task in tasks.values():
        task.forward()
    return tasks


def each_quantizer(name: str, device: str, tiny: bool) -> dict[str, Task]:
    """Return full precision and every registered quantizer -> calibrated task.

    A quantizer for weights only is combined with Eq. 13 on the inputs, and the other way round.
    """
    tasks = {q or "full precision": _retinanet(name, device, tiny, q) for q in ("", *REGISTRY)}
    for label, task in tasks.items():
        if label in REGISTRY:
            set_scales(task.model, task.forward)
    return tasks


def bits_of(quantizer: str) -> int:
    """Return 4, or 2 for a weight quantizer that has no 4 bits."""
    try:
        REGISTRY[quantizer](Spec(4, True, "weight"))
    except ConfigError:
        return 2
    return 4


def _with_torch_fake_quantizers(model: nn.Module, names: list[str], device: str) -> nn.Module:
    """Return a copy whose named layers quantize input and weight with torch's fake-quantizers."""

    def build(low: int, high: int, **options: Any) -> FakeQuantizeBase:
        return FusedMovingAvgObsFakeQuantize(
            MovingAverageMinMaxObserver, quant_min=low, quant_max=high, **options
        ).to(device)

    model = copy.deepcopy(model)
    signed = {"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric}
    for name in names:
        layer = model.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", build(-8, 7, **signed))
        quantize_input = build(0, 15, dtype=torch.quint8)
        layer.add_module("input_fake_quant", quantize_input)
        layer.register_forward_pre_hook(lambda layer, args: (layer.input_fake_quant(args[0]),))
    return model


def _resnet20(name: str, device: str, tiny: bool, quantizer: str) -> Task:
    del name
    torch.manual_seed(0)
    model = ResNetCIFAR(8, width=4) if tiny else ResNetCIFAR(20)
    if quantizer:
        rules = [QuantRule(pattern=pattern, skip=True) for pattern in ("conv1", "fc")]
        rules.append(QuantRule(pattern="blocks.*", output_scale=False))  # a norm follows each
        config = QuantConfig(
            weight_quantizer=quantizer,
            act_quantizer=quantizer,
            learn_weight_scale=quantizer == "lsq",
            rules=tuple(rules),
        )
        quantize_model(model, config)
    count = 4 if tiny else 128
    images, labels = torch.rand(count, 3, 32, 32, device=device), torch.arange(count) % 10
    labels = labels.to(device)
    return Task(
        model.to(device).train(),
        lambda model: nn.functional.cross_entropy(model(images), labels),
    )


CONFIGS = {
    "retinanet-r18-half": ("configs/digits/Base-RetinaNet-R18-half.yaml", 8, 128),
    "retinanet-r18": ("configs/COCO-Detection/retinanet_R_18_FPN_qat_sgdt.yaml", 2, 256),
    "retinanet-r50": ("configs/COCO-Detection/retinanet_R_50_FPN_qat_sgdt.yaml", 2, 256),
}
"""Name -> config, number of images and their side in pixels; on a GPU 4 images of 800 px."""


def _retinanet(name: str, device: str, tiny: bool, quantizer: str) -> Task:
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    from tr_det.detection.config.reading import load_config

    path, count, side = CONFIGS[name]
    cfg = load_config(ROOT / path, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device])
    cfg.MODEL.QUANT.ENABLED = bool(quantizer)
    if quantizer:
        roles = REGISTRY[quantizer].roles
        if "weight" in roles:
            cfg.MODEL.QUANT.WEIGHT_QUANTIZER = quantizer
            cfg.MODEL.QUANT.WEIGHT_BITS = bits_of(quantizer)
        if "input" in roles:
            cfg.MODEL.QUANT.ACT_QUANTIZER = quantizer
        cfg.MODEL.QUANT.LEARN_WEIGHT_SCALE = quantizer != "fixed_grid"
    cfg.MODEL.RESNETS.NORM = "BN"  # SyncBN needs several processes
    if tiny:
        count, side = 2, 64
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
        cfg.MODEL.FPN.OUT_CHANNELS = 16
    elif device == "cuda":
        count, side = 4, 800
    generator = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(count):
        objects = Instances((side, side))
        corners = torch.rand(8, 2, generator=generator) * side / 2
        objects.gt_boxes = Boxes(torch.cat([corners, corners + side / 4], dim=1))
        objects.gt_classes = torch.arange(8)
        image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
        batch.append({"image": image, "instances": objects, "height": side, "width": side})
    torch.manual_seed(0)

    def loss(model: nn.Module) -> Tensor:
        with EventStorage():
            total: Tensor = sum(model(batch).values())
        return total

    return Task(build_model(cfg).train(), loss)
