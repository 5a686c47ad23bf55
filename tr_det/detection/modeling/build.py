"""Detectron2's ``build_model`` follows ``MODEL.QUANT``, whoever calls it.

A config has these keys by `tr_det.detection` only, so wherever they can be said they are obeyed:
by ``DefaultPredictor``, by Detectron2's own tools, by code that imported ``build_model`` before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling.meta_arch import build
from fvcore.common.registry import Registry
from torch import nn

from tr_det.detection.config.checks import check_config
from tr_det.detection.data.register import follow_register
from tr_det.detection.modeling.quantize import build_detector


class _CheckedArchitectures(Registry):
    """Detectron2's meta-architectures, whose models are quantized when they are built."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry._name)
        self._obj_map = registry._obj_map  # one table: either registers for both

    def get(self, name: str) -> Any:
        """Return what builds a detector from a config."""
        return partial(_build, super().get(name))


def _build(make: Any, cfg: CfgNode) -> nn.Module:
    if "REGISTER" in cfg.DATASETS:
        follow_register(cfg)
    # A full-precision model of another project is its own affair, unless a process is all ours.
    is_asked = "QUANT" in cfg.MODEL and (cfg.MODEL.QUANT.ENABLED or "QUANT" in get_cfg().MODEL)
    if not is_asked:
        model: nn.Module = make(cfg)
        return model
    check_config(cfg)
    return build_detector(cfg, make)


def follow_quant_keys() -> None:
    """Put it in place; a second call changes nothing."""
    # What build_model looks up when it is called; the registry that others hold stays.
    if not isinstance(build.META_ARCH_REGISTRY, _CheckedArchitectures):
        build.META_ARCH_REGISTRY = _CheckedArchitectures(build.META_ARCH_REGISTRY)
