"""Images as a timm backbone's weights expect them: RGB, with their mean and deviation.

A config may build on one of another backbone, whose normalisation it then has. So with
``MODEL.TIMM.NORMALIZATION`` at ``"weights"`` our tools replace ``MODEL.PIXEL_MEAN``,
``MODEL.PIXEL_STD`` and ``INPUT.FORMAT``; where they cannot (Detectron2's own tools), a config with
other values is refused. With ``"config"`` the three keys are taken as they are.
"""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode

from tr_det.core.errors import check
from tr_det.detection.config.values import value_of
from tr_det.runtime.timm_models import pretrained_cfg

BITS = 255.0
"""timm's images are in [0, 1], Detectron2's in [0, 255]."""


def has_timm_backbone(cfg: CfgNode) -> bool:
    """Return whether the backbone is one of timm's."""
    return "quant_timm" in cfg.MODEL.BACKBONE.NAME


def expected_input(cfg: CfgNode) -> dict[str, Any]:
    """Return the keys and values that go with the weights of ``MODEL.TIMM.NAME``."""
    found = pretrained_cfg("MODEL.TIMM.NAME", cfg.MODEL.TIMM.NAME)
    mean, std = ([round(BITS * x, 4) for x in values] for values in (found.mean, found.std))
    return {"MODEL.PIXEL_MEAN": mean, "MODEL.PIXEL_STD": std, "INPUT.FORMAT": "RGB"}


def follow_timm_weights(cfg: CfgNode) -> None:
    """Set a config's normalisation to that of the weights, unless it is to be taken as it is."""
    if not has_timm_backbone(cfg) or cfg.MODEL.TIMM.NORMALIZATION == "config":
        return
    expected = expected_input(cfg)
    if any(value_of(cfg, key) != value for key, value in expected.items()):
        words = ", ".join(f"{key} {value}" for key, value in expected.items())
        logging.getLogger(__name__).info("Normalisation of %s: %s", cfg.MODEL.TIMM.NAME, words)
    cfg.merge_from_list([part for pair in expected.items() for part in pair])


def check_timm(cfg: CfgNode) -> None:
    """Check the keys of a timm backbone that depend on each other.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    frozen = cfg.MODEL.BACKBONE.FREEZE_AT
    allowed = "0 with a timm backbone, which is trained as a whole"
    check("MODEL.BACKBONE.FREEZE_AT", frozen, frozen == 0, allowed)
    if cfg.MODEL.TIMM.NORMALIZATION == "config":
        pretrained_cfg("MODEL.TIMM.NAME", cfg.MODEL.TIMM.NAME)
        return
    for key, value in expected_input(cfg).items():
        own = value_of(cfg, key)
        same = own == value if isinstance(value, str) else list(own) == value
        allowed = (
            f"{value}, as the weights of {cfg.MODEL.TIMM.NAME} expect; with "
            "MODEL.TIMM.NORMALIZATION config it may be another"
        )
        check(key, own, same, allowed)


def timm_first_layers(cfg: CfgNode) -> tuple[str, ...]:
    """Return globs over the name of a timm backbone's first convolution.

    timm renames ``stem.0`` to ``stem_0`` where it takes features by lists, and wraps a model whose
    features it takes by hooks.
    """
    found = pretrained_cfg("MODEL.TIMM.NAME", cfg.MODEL.TIMM.NAME).first_conv or ()
    names = [found] if isinstance(found, str) else found
    return tuple(
        f"*body.{wrapper}{name.replace('.', '?')}"
        for name in names
        for wrapper in ("", "model.", "body.")
    )
