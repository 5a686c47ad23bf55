"""Parts of the COCO LazyConfig, for Detectron2's lazyconfig_train_net.py.

``configs/COCO-Detection/retinanet.py`` puts them together. They are lazy nodes, so any part can be
changed on the command line (``model.quant.weight_bits=3``) or in a file of one's own; what depends
on the depth, the bits or the optimizer follows. TR scheduling is inside the optimizer, so the tool
needs no change. What only tools/train_net.py has: strict loading, exact resuming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.model_zoo import get_config
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import DictConfig
from torch import nn

from tr_det.core import QuantConfig
from tr_det.core.errors import check, check_among
from tr_det.core.optim.optimizers import OPTIMIZERS
from tr_det.detection import lazy_parts
from tr_det.detection.config.keys import FIRST_AND_LAST
from tr_det.detection.config.quantization import retinanet_quant_config
from tr_det.detection.config.values import check_arguments
from tr_det.detection.data.register import check_categories_alike
from tr_det.detection.data.register import register as register_datasets
from tr_det.detection.modeling.retinanet import QuantRetinaNet
from tr_det.detection.solver.methods import attach_all, evaluate_through_methods
from tr_det.detection.solver.optimizers import optimizer_groups

PROTOCOLS = ("paper", "all")
DEPTH = "${model.backbone.bottom_up.stages.depth}"
IMAGENET_WEIGHTS = {
    "18": "r18.pkl",
    "34": "r34.pkl",
    "50": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
}
ANCHORS = [
    [round(side * 2 ** (third / 3), 1) for third in range(3)] for side in (32, 64, 128, 256, 512)
]
"""Three octave scales per level, rounded as in the YAML configs."""

OPTIMIZER_KEYS = {
    "lr": "SOLVER.BASE_LR",
    "momentum": "SOLVER.MOMENTUM",
    "betas": "SOLVER.BETAS",
    "weight_decay": "SOLVER.WEIGHT_DECAY",
    "weight_decay_norm": "SOLVER.WEIGHT_DECAY_NORM",
    "scale_lr_factor": "SOLVER.SCALE_LR_FACTOR",
    "max_iter": "SOLVER.MAX_ITER",
    "log_period": "SOLVER.TR.LOG_PERIOD",
}
"""Arguments of `make_optimizer` -> the keys of a YAML config."""


def quant_config(
    enabled: bool = True,
    weight_bits: int = 4,
    act_bits: int = 4,
    protocol: str = "paper",
    optimizer: str = "SGDT",
    learn_weight_scale: bool | None = None,
    weight_quantizer: str = "fixed_grid",
    act_quantizer: str = "fixed_grid",
    weight_options: Mapping[str, Any] | None = None,
    act_options: Mapping[str, Any] | None = None,
) -> QuantConfig | None:
    """Return how to quantize a RetinaNet; None if not enabled.

    Args:
        enabled: False for full precision.
        weight_bits: of weights, 1 to 8.
        act_bits: of the layers' inputs, 1 to 8.
        protocol: ``"paper"`` keeps the first and the last layers in full precision; ``"all"``
            quantizes them to 8 bits.
        optimizer: its name.
        learn_weight_scale: whether the scales of weight quantizers are trained; None: unless the
            optimizer schedules transition rates.
        weight_quantizer: name of the quantizer.
        act_quantizer: the same for inputs.
        weight_options: options of the quantizer.
        act_options: the same for inputs.

    Raises:
        ConfigError: naming the argument, its value and what is allowed.
    """
    check_among("model.quant.protocol", protocol, PROTOCOLS)
    check("model.quant.enabled", enabled, isinstance(enabled, bool), "True or False")
    if not enabled:
        return None
    if learn_weight_scale is None:
        learn_weight_scale = not is_scheduled(optimizer)
    eight_bits = [f"{pattern} weight_bits=8 act_bits=8" for pattern in FIRST_AND_LAST]
    return retinanet_quant_config(
        FIRST_AND_LAST,
        eight_bits if protocol == "all" else [],
        weight_bits=weight_bits,
        act_bits=act_bits,
        learn_weight_scale=learn_weight_scale,
        weight_quantizer=weight_quantizer,
        act_quantizer=act_quantizer,
        weight_options=dict(weight_options or {}),
        act_options=dict(act_options or {}),
    )


def retinanet(depth: int = 50, norm: str = "SyncBN", num_classes: int = 80) -> DictConfig:
    """Return RetinaNet with ResNet and FPN, quantized to 4 bits by the paper's protocol.

    Detectron2's model with trained norms, RGB images of torchvision's normalisation, and no stride
    in the 1x1 convolutions.
    """
    model = get_config("common/models/retinanet.py").model
    model._target_ = QuantRetinaNet
    backbone = model.backbone
    backbone._target_, backbone.bottom_up._target_ = lazy_parts.fpn, lazy_parts.resnet
    model.head._target_, model.anchor_generator._target_ = lazy_parts.head, lazy_parts.anchors
    model.anchor_matcher._target_ = lazy_parts.matcher
    model.box2box_transform._target_ = lazy_parts.box_transform
    backbone.bottom_up.stem.norm = norm
    backbone.bottom_up.stages = L(resnet_stages)(depth=depth, norm=norm)
    backbone.in_features = "${.bottom_up.out_features}"
    backbone.top_block = L(p6_and_p7)(
        depth="${..bottom_up.stages.depth}", out_channels="${..out_channels}"
    )
    model.anchor_generator.sizes = ANCHORS
    model.num_classes = num_classes
    model.pixel_mean, model.pixel_std = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375]
    model.input_format = "RGB"
    model.quant = L(quant_config)(
        enabled=True,
        weight_bits=4,
        act_bits=4,
        protocol="paper",
        optimizer="${optimizer.name}",
    )
    model.head_input_relu = True
    return model


def resnet_stages(depth: int, norm: str) -> list[list[nn.Module]]:
    """Return a ResNet's stages, with the stride in the 3x3 convolutions of bottlenecks."""
    known = depth in (18, 34, 50)
    check("model.backbone.bottom_up.stages.depth", depth, known, "one of [18, 34, 50]")
    options = {"stride_in_1x1": False} if depth == 50 else {}  # a basic block has no 1x1
    return ResNet.make_default_stages(depth=depth, norm=norm, **options)


def p6_and_p7(depth: int, out_channels: int) -> LastLevelP6P7:
    """Return the FPN's two levels that are computed from res5."""
    return LastLevelP6P7(in_channels=2048 if depth == 50 else 512, out_channels=out_channels)


def sgd(name: str = "SGDT") -> DictConfig:
    """Return SGDT, or another optimizer by name, with the paper's hyperparameters."""
    return L(make_optimizer)(
        # The tool sets params.model before it instantiates the optimizer.
        params={
            "base_lr": "${..lr}",
            "weight_decay": "${..weight_decay}",
            "weight_decay_norm": 0.0,
            "scale_lr_factor": 0.1,
        },
        name=name,
        lr=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        tr_factor=1e-3,
        tr_momentum=0.99,
        max_iter="${train.max_iter}",
        methods=[],
        output_dir="${train.output_dir}",
        # For methods that run the model on training batches. In a dict, so that the loader is not
        # built unless a method asks for it.
        train_data={"loader": "${dataloader.train}"},
    )


def is_scheduled(optimizer: str) -> bool:
    """Return whether an optimizer, by name, schedules transition rates."""
    return optimizer in OPTIMIZERS and OPTIMIZERS[optimizer].transition


def make_optimizer(
    params: Mapping[str, Any],
    name: str,
    max_iter: int,
    methods: Sequence[str] = (),
    log_period: int = 20,
    output_dir: str = "",
    train_data: Mapping[str, Any] | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """Build an optimizer by name, with methods and the curves attached.

    Args:
        params: arguments of `optimizer_groups`, all but ``transition``.
        name: in `tr_det.core.optim.optimizers.OPTIMIZERS`, or another class of torch.optim.
        max_iter: length of the run.
        methods: with their options, as in ``SOLVER.METHODS``.
        log_period: iterations between two records of the curves in the EventStorage.
        output_dir: where a method that changes the evaluated model saves it.
        train_data: its ``loader`` is the lazy node of the training batches, for methods that run
            the model on some.
        **options: of the optimizer; those of TR scheduling (``tr_...``) and ``momentum`` reach
            only optimizers that have them.

    Raises:
        ConfigError: there is no optimizer or method of that name, or a value that cannot be meant.
    """
    given = {**options, **params, "max_iter": max_iter, "log_period": log_period}
    check_arguments(given, OPTIMIZER_KEYS, "optimizer.")
    model, scheduled = params["model"], is_scheduled(name)
    entry = OPTIMIZERS.get(name)
    make: Any = getattr(torch.optim, name, None) if entry is None else entry.make
    allowed = f"one of {sorted(OPTIMIZERS)} or a class of torch.optim"
    check("optimizer.name", name, isinstance(make, type), allowed)
    if scheduled:
        options["total_steps"] = max_iter
    else:
        options = {key: value for key, value in options.items() if not key.startswith("tr_")}
    if entry is not None and "momentum" not in entry.arguments:
        options.pop("momentum", None)
    groups = optimizer_groups(transition=scheduled, **params)
    optimizer: torch.optim.Optimizer = make(groups, **options)
    loader = None if train_data is None else lambda: instantiate(train_data["loader"])
    key = "optimizer.methods"
    attach_all(methods, key, model, optimizer, max_iter, log_period, output_dir, train_data=loader)
    evaluate_through_methods()
    return optimizer


def cosine() -> DictConfig:
    """Return the factor of the learning rate: cosine to zero; full precision warms up first."""
    return L(WarmupParamScheduler)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
        warmup_length=_when_quantized("warmup_length"),
        warmup_factor=1e-3,
        warmup_method="linear",
    )


def coco_loaders() -> DictConfig:
    """Return Detectron2's loaders of COCO 2017 and its evaluation, with RGB images and no masks.

    ``register`` lists other datasets, whose names ``train.dataset.names`` and so on can be.
    """
    loaders = get_config("common/data/coco.py").dataloader
    loaders.train.mapper.image_format = "RGB"
    loaders.train.mapper.use_instance_mask = False
    loaders.evaluator.use_fast_impl = False
    loaders.register = []
    loaders.train._target_, loaders.test._target_ = lazy_parts.train_loader, lazy_parts.eval_loader
    loaders.train.mapper.augmentations[0]._target_ = lazy_parts.train_resize
    loaders.test.mapper.augmentations[0]._target_ = lazy_parts.eval_resize
    for part in (loaders.train, loaders.test):
        part.dataset._target_ = registered_dicts
        part.dataset.register = "${dataloader.register}"
        part.dataset.num_classes = "${model.num_classes}"
    return loaders


def registered_dicts(
    names: str | Sequence[str], register: Sequence[str], num_classes: int, **options: Any
) -> list[dict[str, Any]]:
    """Return Detectron2's dicts of datasets.

    Args:
        names: of one or several.
        register: datasets that are registered before, as in ``DATASETS.REGISTER``.
        num_classes: of the model.
        **options: of Detectron2's ``get_detection_dataset_dicts``.

    Raises:
        ConfigError: an entry of another form, or a model with another number of classes.
    """
    wanted = {names} if isinstance(names, str) else {*names}
    entries = [entry for entry in register_datasets(register) if entry.name in wanted]
    classes = len(check_categories_alike(entries)) or num_classes
    allowed = f"{classes}, the number of categories of {', '.join(sorted(wanted))}"
    check("model.num_classes", num_classes, num_classes == classes, allowed)
    dicts: list[dict[str, Any]] = get_detection_dataset_dicts(names, **options)
    return dicts


def train_options() -> DictConfig:
    """Return Detectron2's ``train`` with folders and weights of our own.

    Under ``when_quantized``: what depends on ``model.quant.enabled``.
    """
    name = f"output/coco/retinanet_R_{DEPTH}_FPN"
    bits = "w${model.quant.weight_bits}a${model.quant.act_bits}"
    train = DictConfig(get_config("common/train.py").train)
    train.when_quantized = {
        "False": {
            "output_dir": f"{name}_fp",
            "init_checkpoint": f"${{oc.select:train.imagenet.{DEPTH}}}",
            "warmup_length": 1000 / 90_000,
        },
        "True": {
            "output_dir": f"{name}_{bits}_${{model.quant.protocol}}_${{optimizer.name}}",
            "init_checkpoint": f"{name}_fp/model_final.pth",
            "warmup_length": 0.0,
        },
    }
    train.imagenet = IMAGENET_WEIGHTS
    train.output_dir = _when_quantized("output_dir")
    train.init_checkpoint = _when_quantized("init_checkpoint")
    return train


def _when_quantized(key: str) -> str:
    return f"${{oc.select:train.when_quantized.${{model.quant.enabled}}.{key}}}"
