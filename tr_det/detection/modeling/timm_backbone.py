"""Any model of timm with feature maps as a backbone of Detectron2."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from tr_det.core import ConfigError
from tr_det.core.errors import check
from tr_det.detection.config.timm_input import check_timm
from tr_det.detection.config.values import check_value
from tr_det.detection.modeling.quantize import quantize_backbone
from tr_det.detection.modeling.resnet import build_fpn
from tr_det.runtime.checkpoint_keys import listed, shortened
from tr_det.runtime.damage import read_checkpoint
from tr_det.runtime.options import parse_pairs
from tr_det.runtime.timm_models import make_exportable, pretrained_cfg, timm_library

LIBRARY = "library"
"""Value of ``MODEL.TIMM.WEIGHTS`` for timm's own download."""

FEATURES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}
"""Stride -> feature, named as a ResNet's, so that an FPN and its config serve all backbones."""

_OURS = ("features_only", "in_chans", "num_classes", "out_indices", "pretrained")
_WRAPPERS = ("model.", "body.")  # of timm's, around a model whose features are taken by hooks
_COUNTER = "num_batches_tracked"


class TimmBackbone(Backbone):
    """A model of timm without its classifier.

    Args:
        body: built by timm with ``features_only=True``; its children keep timm's names.
        out_features: of ``res2`` to ``res5``; where several feature maps have a stride, the last.

    Raises:
        ConfigError: the model has no feature map of a stride.
    """

    def __init__(self, body: Any, out_features: Sequence[str]) -> None:
        super().__init__()
        self.body = body
        strides, channels = body.feature_info.reduction(), body.feature_info.channels()
        places = {FEATURES.get(stride, ""): index for index, stride in enumerate(strides)}
        lacking = [stride for stride, name in FEATURES.items() if name in out_features]
        lacking = [stride for stride in lacking if FEATURES[stride] not in places]
        if lacking:
            raise ConfigError(
                "MODEL.TIMM.NAME",
                type(body).__name__,
                f"a model with feature maps of stride {lacking}; this one's are of {strides}",
            )
        self._places = {name: places[name] for name in out_features}
        self._channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        self._out_features = list(out_features)
        self._out_feature_channels = {name: channels[i] for name, i in self._places.items()}
        self._out_feature_strides = {name: strides[i] for name, i in self._places.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features of an image batch (N, C, H, W)."""
        maps = self.body(x)
        if self._channels_last:
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        return {name: maps[place] for name, place in self._places.items()}


@BACKBONE_REGISTRY.register()
def build_quant_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build the model of ``cfg.MODEL.TIMM``, quantized by ``cfg.MODEL.QUANT``."""
    return quantize_backbone(_build(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_retinanet_quant_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build it with an FPN with levels p3 to p7 for RetinaNet, quantized likewise."""
    return quantize_backbone(build_fpn(cfg, _build(cfg, input_shape)), cfg)


def _build(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    check_timm(cfg)
    node = cfg.MODEL.TIMM
    check_value("MODEL.TIMM.NORM", node.NORM)
    options = parse_pairs(node.OPTIONS, "MODEL.TIMM.OPTIONS")
    found = pretrained_cfg("MODEL.TIMM.NAME", node.NAME)
    adapts = options.get("strict_img_size") is False or options.get("dynamic_img_size") is True
    allowed = (
        f"a model for images of any size; this one's are of {found.input_size[1:]}. Some have "
        "MODEL.TIMM.OPTIONS strict_img_size=False or dynamic_img_size=True"
    )
    check("MODEL.TIMM.NAME", node.NAME, adapts or not found.fixed_input_size, allowed)
    own = sorted(set(options) & set(_OURS))
    check("MODEL.TIMM.OPTIONS", list(node.OPTIONS), not own, f"without {own}, which are set here")
    body = _with_norm(_body(node, input_shape.channels, options), node.NORM)
    if node.WEIGHTS not in ("", LIBRARY):
        load_weights(body, node.WEIGHTS)
    try:
        return TimmBackbone(body, node.OUT_FEATURES)
    except ConfigError as error:
        raise ConfigError(error.key, node.NAME, error.allowed) from None


def _body(node: CfgNode, channels: int, options: Mapping[str, Any]) -> nn.Module:
    create = timm_library("MODEL.TIMM.NAME", node.NAME).create_model
    pretrained = node.WEIGHTS == LIBRARY
    try:
        body: nn.Module = create(
            node.NAME, pretrained=pretrained, features_only=True, in_chans=channels, **options
        )
    except Exception as error:  # what a download, or a model's own options, raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if pretrained:
            allowed = f"a file of weights: timm could not load its own ({reason})"
            raise ConfigError("MODEL.TIMM.WEIGHTS", node.WEIGHTS, allowed) from None
        if options:
            allowed = f"arguments of {node.NAME}: {reason}"
            raise ConfigError("MODEL.TIMM.OPTIONS", list(node.OPTIONS), allowed) from None
        allowed = f"a model that timm builds with features_only=True ({reason})"
        raise ConfigError("MODEL.TIMM.NAME", node.NAME, allowed) from None
    make_exportable(body)
    return body


def _with_norm(body: nn.Module, norm: str) -> nn.Module:
    """Return the model with its batch norms replaced by another kind of batch norm."""
    if norm == "BN":
        return body
    has_norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in body.modules())
    check("MODEL.TIMM.NORM", norm, has_norms, "BN: the model has no batch norm to replace")
    if norm == "SyncBN":
        from timm.layers import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(body)
    else:
        from timm.utils.model import freeze_batch_norm_2d

        converted = freeze_batch_norm_2d(body)
    return converted


@torch.no_grad()
def load_weights(body: nn.Module, path: str) -> None:
    """Load a file with timm's names, of the whole model or of its features.

    timm renames ``stem.0`` to ``stem_0`` where it takes features, which is allowed for. What the
    file has besides (the classifier) is logged.

    Args:
        body: built with ``features_only=True``.
        path: of torch, or ``*.safetensors``.

    Raises:
        ValueError: naming the file, if it lacks a weight or has one of another shape.
        OSError: there is no such file.
    """
    saved = {_plain(key): (key, value) for key, value in _read(path).items()}
    own = {_plain(key): (key, value) for key, value in body.state_dict().items()}
    wanted = {key for key in own if not key.endswith(_COUNTER)}
    missing = [own[key][0] for key in sorted(wanted - set(saved))]
    shapes = [
        f"{own[key][0]} {tuple(saved[key][1].shape)} for {tuple(own[key][1].shape)}"
        for key in sorted(wanted & set(saved))
        if saved[key][1].shape != own[key][1].shape
    ]
    if missing or shapes:
        problems = listed({"missing": missing, "of another shape": shapes})
        raise ValueError(
            f"MODEL.TIMM.WEIGHTS={path}: not the weights of this model: keys {problems}"
        )
    body.load_state_dict({own[key][0]: saved[key][1] for key in own if key in saved}, strict=False)
    rest = [key for plain, (key, _) in saved.items() if plain not in own]
    logging.getLogger(__name__).info(
        "Weights of the backbone from %s: %d tensors%s",
        path,
        len(wanted),
        f"; not used: {shortened(rest, 6)}" if rest else "",
    )


def _read(path: str) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"MODEL.TIMM.WEIGHTS={path}: not readable ({error})") from None
    found = read_checkpoint(path)
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not (isinstance(found, Mapping) and all(isinstance(v, Tensor) for v in found.values())):
        raise ValueError(f"MODEL.TIMM.WEIGHTS={path}: must hold a dictionary of tensors")
    return dict(found)


def _plain(key: str) -> str:
    """Return a name as it is in every form of a model."""
    for wrapper in _WRAPPERS:
        key = key.removeprefix(wrapper)
    return key.replace(".", "_")
