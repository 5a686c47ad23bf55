"""`MODEL.QUANT` as the core's checked config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode as CN  # noqa: N817  Detectron2's own habit

from tr_det.core import ConfigError, QuantConfig, QuantRule
from tr_det.core.errors import check
from tr_det.detection.config.keys import FIRST_AND_LAST
from tr_det.detection.config.timm_input import has_timm_backbone, timm_first_layers
from tr_det.runtime.options import parse_pairs

OTHERS_FIRST_AND_LAST = (
    "*stem.conv",
    "*bottom_up.features.0.0",
    "head.ctrness",
    "proposal_generator.rpn_head.objectness_logits",
    "proposal_generator.rpn_head.anchor_deltas",
    "roi_heads.box_predictor*",
    "roi_heads.mask_head.predictor",
    "roi_heads.keypoint_head.score_lowres",
    "sem_seg_head.predictor",
)
"""The same of Detectron2's other backbones and detectors; they go with the default of
``MODEL.QUANT.SKIP``."""


def quant_config_from(cfg: CN) -> QuantConfig:
    """Return the core's config from ``cfg.MODEL.QUANT``.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    node = cfg.MODEL.QUANT
    try:
        return retinanet_quant_config(
            node.SKIP,
            node.RULES,
            first=timm_first_layers(cfg) if has_timm_backbone(cfg) else (),
            weight_bits=node.WEIGHT_BITS,
            act_bits=node.ACT_BITS,
            weight_quantizer=node.WEIGHT_QUANTIZER,
            act_quantizer=node.ACT_QUANTIZER,
            weight_options=parse_pairs(node.WEIGHT_OPTIONS, "WEIGHT_OPTIONS"),
            act_options=parse_pairs(node.ACT_OPTIONS, "ACT_OPTIONS"),
            learn_weight_scale=node.LEARN_WEIGHT_SCALE,
            output_scale=node.OUTPUT_SCALE,
            recompute_inputs=node.RECOMPUTE_INPUTS,
        )
    except ConfigError as error:
        raise under_quant_key(cfg, error) from None


def under_quant_key(cfg: CN, error: ConfigError) -> ConfigError:
    """Return the core's error about a `QuantConfig` under the config's key.

    >>> error = ConfigError("weight_options.per_channel", 2, "True or False")
    >>> print(under_quant_key(CN(), error))
    MODEL.QUANT.WEIGHT_OPTIONS: per_channel=2: must be True or False
    """
    key, _, option = error.key.partition(".")
    if key == "MODEL":
        return error
    if key == "rules":
        in_rules = any(rule.split()[0] == error.value for rule in cfg.MODEL.QUANT.RULES)
        key = "RULES" if in_rules else "SKIP"
    return error.renamed(f"MODEL.QUANT.{key.upper()}" + (f": {option}" if option else ""))


def retinanet_quant_config(
    skip: Sequence[str],
    rules: Sequence[str],
    *,
    first: Sequence[str] = (),
    **options: Any,
) -> QuantConfig:
    """Return the core's config of a RetinaNet.

    Args:
        skip: globs of layers to keep in full precision; of the default, `FIRST_AND_LAST`, some may
            match nothing.
        rules: exceptions, as in ``MODEL.QUANT.RULES``.
        first: globs of the first layers of a backbone that the default does not know.
        **options: fields of `QuantConfig`.
    """
    is_default = tuple(skip) == FIRST_AND_LAST
    if is_default:
        skip = (*FIRST_AND_LAST, *OTHERS_FIRST_AND_LAST, *first)
    made = [QuantRule(pattern=pattern, skip=True, optional=is_default) for pattern in skip]
    made += [parse_rule(text) for text in rules]
    return QuantConfig(rules=tuple(made), **options)


def parse_rule(text: str) -> QuantRule:
    """Return the rule written as ``"GLOB key=value ..."``.

    Raises:
        ConfigError: naming MODEL.QUANT.RULES and the rule.

    >>> parse_rule("head.* weight_bits=8 signed_input=True").weight_bits
    8
    """
    kinds = {"weight_bits": int, "act_bits": int, "signed_input": bool, "output_scale": bool}
    pattern, *words = (text.split() if isinstance(text, str) else []) or [""]
    key = "MODEL.QUANT.RULES"
    fields = parse_pairs(words, key)
    fits = all(type(value) is kinds.get(name) for name, value in fields.items())
    check(
        key,
        text,
        bool(fields) and fits,
        "'GLOB key=value ...', keys weight_bits and act_bits (integers), signed_input and "
        "output_scale (True or False)",
    )
    if "weight_bits" in fields or "act_bits" in fields:
        fields.setdefault("skip", False)  # who gives bits wants the layer quantized
    try:
        return QuantRule(pattern=pattern, **fields)
    except ConfigError as error:
        raise error.renamed(f"{key}: {error.key}") from None
