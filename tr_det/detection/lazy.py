"""LazyConfigs: the rows of ``configs/COCO-Detection`` for Detectron2's lazyconfig_train_net.py.

`retinanet_coco` returns the five objects that the tool asks of a config file, as lazy nodes: any
part can be changed on the command line (``model.quant.weight_bits=3``) or in a file of one's own.
TR scheduling is inside the optimizer, so the tool needs no change. It knows no learning rate
but the optimizer's, no strict loading and no exact resume: for those there is tools/train_net.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicStem
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import DictConfig
from torch import nn

from tr_det.core import QuantConfig
from tr_det.core.errors import check
from tr_det.core.optim.registry import OPTIMIZERS
from tr_det.detection.config.keys import FIRST_AND_LAST
from tr_det.detection.config.quantization import retinanet_quant_config
from tr_det.detection.modeling.retinanet import QuantRetinaNet
from tr_det.detection.solver.methods import attach_all, evaluate_through_methods
from tr_det.detection.solver.optimizers import optimizer_groups

PROTOCOLS = ("paper", "all")
ANCHORS = [
    [round(side * 2 ** (third / 3), 1) for third in range(3)] for side in (32, 64, 128, 256, 512)
]
"""Three octave scales per level, rounded as in the YAML configs."""


def retinanet_coco(
    depth: int, bits: int = 32, optimizer: str = "SGD", protocol: str = "paper"
) -> tuple[DictConfig, DictConfig, DictConfig, DictConfig, DictConfig]:
    """Return a row of the paper's COCO tables: model, dataloader, optimizer, lr_multiplier, train.

    Args:
        depth: of the ResNet: 18, 34 or 50.
        bits: of weights and activations; 32 is full precision.
        optimizer: ``"SGD"``, which trains the scales of weight quantizers, or ``"SGDT"``.
        protocol: ``"paper"`` keeps the first and the last layers in full precision; ``"all"``
            quantizes them to 8 bits.

    Raises:
        ConfigError: an argument that is none of these.
    """
    for name, value, allowed in (
        ("depth", depth, (18, 34, 50)),
        ("optimizer", optimizer, ("SGD", "SGDT")),
        ("protocol", protocol, PROTOCOLS),
    ):
        check(name, value, value in allowed, f"one of {list(allowed)}")
    row = f"w{bits}a{bits}_{optimizer.lower()}" if bits < 32 else "fp"
    folder = "output/coco/all" if protocol == "all" and bits < 32 else "output/coco"
    name = f"retinanet_R_{depth}_FPN"
    model = retinanet(depth)
    if bits < 32:
        weights = f"output/coco/{name}_fp/model_final.pth"
        model.quant = L(quant_config)(
            weight_bits=bits,
            act_bits=bits,
            protocol=protocol,
            learn_weight_scale=optimizer == "SGD",
        )
    elif depth == 50:
        weights = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    else:
        weights = f"r{depth}.pkl"
    return (
        model,
        coco_loaders(),
        sgd(optimizer),
        cosine(warmup_share=0.0 if bits < 32 else 1000 / 90_000),
        DictConfig(train_options(f"{folder}/{name}_{row}", weights)),
    )


def quant_config(
    weight_bits: int = 4,
    act_bits: int = 4,
    protocol: str = "paper",
    learn_weight_scale: bool = False,
    head_input_relu: bool = True,
    weight_quantizer: str = "fixed_grid",
    act_quantizer: str = "fixed_grid",
    weight_options: Mapping[str, Any] | None = None,
    act_options: Mapping[str, Any] | None = None,
) -> QuantConfig:
    """Return how to quantize a RetinaNet by a protocol; see `retinanet_coco`."""
    if protocol == "all":
        skip, rules = [], [f"{pattern} weight_bits=8 act_bits=8" for pattern in FIRST_AND_LAST]
    else:
        skip, rules = list(FIRST_AND_LAST), []
    return retinanet_quant_config(
        skip,
        rules,
        head_input_relu=head_input_relu,
        weight_bits=weight_bits,
        act_bits=act_bits,
        learn_weight_scale=learn_weight_scale,
        weight_quantizer=weight_quantizer,
        act_quantizer=act_quantizer,
        weight_options=dict(weight_options or {}),
        act_options=dict(act_options or {}),
    )


def retinanet(depth: int, norm: str = "SyncBN", num_classes: int = 80) -> DictConfig:
    """Return RetinaNet with ResNet and FPN, in full precision: ``quant`` is None."""
    channels = 2048 if depth == 50 else 512
    stages = {"stride_in_1x1": False} if depth == 50 else {}  # a basic block has no 1x1
    return L(QuantRetinaNet)(
        backbone=L(FPN)(
            bottom_up=L(ResNet)(
                stem=L(BasicStem)(in_channels=3, out_channels=64, norm=norm),
                stages=L(ResNet.make_default_stages)(depth=depth, norm=norm, **stages),
                out_features=["res3", "res4", "res5"],
            ),
            in_features="${.bottom_up.out_features}",
            out_channels=256,
            top_block=L(LastLevelP6P7)(in_channels=channels, out_channels="${..out_channels}"),
        ),
        head=L(RetinaNetHead)(
            input_shape=[ShapeSpec(channels=256)] * 5,
            num_classes="${..num_classes}",
            num_anchors=9,
            conv_dims=[256] * 4,
        ),
        head_in_features=["p3", "p4", "p5", "p6", "p7"],
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=ANCHORS,
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
            offset=0.0,
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        anchor_matcher=L(Matcher)(
            thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        num_classes=num_classes,
        smooth_l1_beta=0.0,
        pixel_mean=[123.675, 116.280, 103.530],
        pixel_std=[58.395, 57.120, 57.375],
        input_format="RGB",
        quant=None,
        head_input_relu=True,
    )


def sgd(name: str = "SGDT") -> DictConfig:
    """Return SGD or SGDT with the paper's hyperparameters."""
    transition = name.endswith("T")
    return L(make_optimizer)(
        # The tool sets params.model before it instantiates the optimizer.
        params=L(model_and_groups)(
            transition=transition,
            base_lr="${..lr}",
            weight_decay="${..weight_decay}",
            weight_decay_norm=0.0,
            scale_lr_factor=0.1,
        ),
        name=name,
        lr=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        max_iter="${train.max_iter}",
        methods=[],
        output_dir="${train.output_dir}",
        # For methods that run the model on training batches. In a dict, so that the loader is not
        # made before one of them asks for it.
        train_data={"loader": "${dataloader.train}"},
        **({"tr_factor": 1e-3, "tr_momentum": 0.99} if transition else {}),
    )


def model_and_groups(model: nn.Module, **options: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Return a model and its optimizer's groups; see `optimizer_groups`."""
    return model, optimizer_groups(model, **options)


def make_optimizer(
    params: tuple[nn.Module, list[dict[str, Any]]],
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
        params: see `model_and_groups`.
        name: in `tr_det.core.optim.registry.OPTIMIZERS`, or another class of torch.optim.
        max_iter: length of the run.
        methods: with their options, as in ``SOLVER.METHODS``.
        log_period: iterations between two records of the curves in the EventStorage.
        output_dir: where what evaluations see is written, if a method changes that.
        train_data: its ``loader`` is the lazy node of the training batches, for methods that run
            the model on some.
        **options: of the optimizer.

    Raises:
        ConfigError: there is no optimizer or method of that name.
    """
    model, groups = params
    own = getattr(torch.optim, name, None)
    entry = OPTIMIZERS.get(name)
    known = entry is not None or isinstance(own, type)
    check("optimizer.name", name, known, f"one of {sorted(OPTIMIZERS)} or a class of torch.optim")
    if entry is not None and entry.transition:
        options["total_steps"] = max_iter
    optimizer = (own if entry is None else entry.make)(groups, **options)
    key = "optimizer.methods"
    loader = None if train_data is None else lambda: instantiate(train_data["loader"])
    attach_all(methods, key, model, optimizer, max_iter, log_period, output_dir, train_data=loader)
    evaluate_through_methods()
    return optimizer


def cosine(warmup_share: float = 0.0) -> DictConfig:
    """Return the learning rate's course: cosine to zero, after a warm-up from a thousandth."""
    course = L(CosineParamScheduler)(start_value=1.0, end_value=0.0)
    if not warmup_share:
        return course
    return L(WarmupParamScheduler)(
        scheduler=course, warmup_length=warmup_share, warmup_factor=1e-3, warmup_method="linear"
    )


def coco_loaders() -> DictConfig:
    """Return loaders of COCO 2017 and its evaluation."""
    return DictConfig(
        {
            "train": L(build_detection_train_loader)(
                dataset=L(get_detection_dataset_dicts)(names="coco_2017_train"),
                mapper=L(DatasetMapper)(
                    is_train=True,
                    augmentations=[
                        L(T.ResizeShortestEdge)(
                            short_edge_length=(640, 672, 704, 736, 768, 800),
                            sample_style="choice",
                            max_size=1333,
                        ),
                        L(T.RandomFlip)(horizontal=True),
                    ],
                    image_format="RGB",
                ),
                total_batch_size=16,
                num_workers=4,
            ),
            "test": L(build_detection_test_loader)(
                dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
                mapper=L(DatasetMapper)(
                    is_train=False,
                    augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
                    image_format="${...train.mapper.image_format}",
                ),
                num_workers=4,
            ),
            "evaluator": L(COCOEvaluator)(
                dataset_name="${..test.dataset.names}", use_fast_impl=False
            ),
        },
        flags={"allow_objects": True},
    )


def train_options(output_dir: str, init_checkpoint: str) -> dict[str, Any]:
    """Return what the tool looks up under ``train``."""
    return {
        "output_dir": output_dir,
        "init_checkpoint": init_checkpoint,
        "max_iter": 90_000,
        "amp": {"enabled": False},
        "ddp": {
            "broadcast_buffers": False,
            "find_unused_parameters": False,
            "fp16_compression": False,
        },
        "checkpointer": {"period": 5000, "max_to_keep": 100},
        "eval_period": 5000,
        "log_period": 20,
        "device": "cuda",
    }
