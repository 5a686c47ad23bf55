"""The project's config keys, and their translation into the core's checked values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode as CN  # noqa: N817  Detectron2's own habit

from tr_det.core import ConfigError, QuantConfig, QuantRule
from tr_det.core.errors import check
from tr_det.core.transition.settings import config_defaults
from tr_det.training.options import parse_pairs

FIRST_AND_LAST = ("*stem.conv1", "head.cls_score", "head.bbox_pred")
"""Globs of a RetinaNet's first and last layers."""

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

SIGNED_INPUTS = ("*stem.conv1", "*stem.conv", "*fpn_output*")
"""The image, and sums of FPN features."""

MOBILENET_SIGNED_INPUTS = (
    "*bottom_up.features.0.0",
    *(f"*bottom_up.features.{block}.conv.0.0" for block in range(2, 18)),
    "*bottom_up.features.18.0",
    "*fpn_lateral2",
    "*fpn_lateral3",
    "*fpn_lateral4",
)
"""The image, and what reads a linear bottleneck."""


def add_tr_det_config(cfg: CN) -> None:
    """Add the project's keys to a Detectron2 config, in place.

    Values are checked when a model or an optimizer is built from them; unknown keys are refused by
    yacs.
    """
    # ---- which model is quantized, and how ----
    cfg.MODEL.QUANT = CN()
    # Quantize the model. False builds the same network in full precision.
    cfg.MODEL.QUANT.ENABLED = False
    # Bits of weights: 1 to 8, or 32 for full precision.
    cfg.MODEL.QUANT.WEIGHT_BITS = 4
    # Bits of the layers' inputs: 1 to 8, or 32.
    cfg.MODEL.QUANT.ACT_BITS = 4
    # Quantizers: names of files in tr_det/core/quantizers.
    cfg.MODEL.QUANT.WEIGHT_QUANTIZER = "fixed_grid"
    cfg.MODEL.QUANT.ACT_QUANTIZER = "fixed_grid"
    # Options of the quantizers, "key=value" each: learn_scale, per_channel (weights), estimator
    # ("clip", "round", "ewgs", "identity"), ewgs_factor, and those in the head of the quantizer's
    # file; e.g. ["per_channel=True"].
    cfg.MODEL.QUANT.WEIGHT_OPTIONS = []
    cfg.MODEL.QUANT.ACT_OPTIONS = []
    # Train the parameters of weight quantizers, where they have any. TR scheduling needs them
    # frozen unless SOLVER.TR.SCALES says how to tell their transitions apart.
    cfg.MODEL.QUANT.LEARN_WEIGHT_SCALE = False
    # Learnable output scale: "auto" (where a quantizer needs it and no trainable norm follows),
    # "always" or "never".
    cfg.MODEL.QUANT.OUTPUT_SCALE = "auto"
    # Quantize inputs once more in the backward pass instead of keeping them: less memory, the same
    # numbers, a little more time.
    cfg.MODEL.QUANT.RECOMPUTE_INPUTS = False
    # ReLU on the inputs of RetinaNet's head, so that all its activations are non-negative (the
    # paper's protocol). Also applies with ENABLED False, so that a full-precision model can be
    # trained as the network it will become.
    cfg.MODEL.QUANT.HEAD_INPUT_RELU = True
    # Layers kept in full precision: globs over layer names. The paper's choice: the first and the
    # last ones.
    cfg.MODEL.QUANT.SKIP = list(FIRST_AND_LAST)
    # In other architectures than QuantRetinaNet the default also names their first and last layers.
    # Exceptions, one string per rule: "GLOB key=value ...", keys weight_bits, act_bits,
    # signed_input, output_scale; e.g. "head.cls_score weight_bits=8 act_bits=8".
    cfg.MODEL.QUANT.RULES = []
    # Training batches that set scales and re-estimate BN when a full-precision checkpoint is
    # evaluated quantized.
    cfg.MODEL.QUANT.CALIBRATION_BATCHES = 16

    # ---- MobileNetV2, for backbones with that name ----
    cfg.MODEL.MOBILENETV2 = CN()
    # Multiplier of all channels.
    cfg.MODEL.MOBILENETV2.WIDTH = 1.0
    cfg.MODEL.MOBILENETV2.NORM = "BN"
    # Of res2 to res5, named by their strides as a ResNet's.
    cfg.MODEL.MOBILENETV2.OUT_FEATURES = ["res3", "res4", "res5"]

    # ---- checkpoints ----
    # Allow MODEL.WEIGHTS to lack keys, have others or other shapes, e.g. to start from an ImageNet
    # backbone.
    cfg.MODEL.ALLOW_PARTIAL_WEIGHTS = False

    # ---- training ----
    # Precision of the forward under SOLVER.AMP.ENABLED: "float16" (GPU only, losses are scaled),
    # "bfloat16", or "auto": float16 on a GPU, as in Detectron2, bfloat16 on a CPU.
    cfg.SOLVER.AMP.DTYPE = "auto"

    # ---- optimizer ----
    # SGD, Adam, NAdam, Adamax, AdamW, RMSprop, Adagrad, or with TR scheduling SGDT, AdamT, NAdamT,
    # AdamaxT, AdamWT, RMSpropT, AdagradT. SOLVER.MOMENTUM and SOLVER.NESTEROV serve SGD,
    # SOLVER.MOMENTUM also RMSprop.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Adam's family: decay rates of the first and second moments.
    cfg.SOLVER.BETAS = (0.9, 0.999)
    # Learning rate of quantizers' parameters, relative to BASE_LR; they get no weight decay.
    cfg.SOLVER.SCALE_LR_FACTOR = 0.1
    # What accompanies training: names of files in tr_det/core/methods with their options, e.g.
    # ["freezing threshold=0.02", "weight_average decay=0.999"].
    cfg.SOLVER.METHODS = []

    # ---- transition-rate scheduling, for optimizers whose name ends in T ----
    # FACTOR, MOMENTUM, SCHEDULE, WARMUP, FINAL, UPDATE, SIGNAL, SCALES, GRANULARITY, GAIN, DECAY,
    # NONFINITE: meanings and values in tr_det/docs/tr_settings.md.
    cfg.SOLVER.TR = CN({name.upper(): value for name, value in config_defaults().items()})
    # Iterations between two records of the curves in EventStorage, with any optimizer (reading
    # them synchronises with the device).
    cfg.SOLVER.TR.LOG_PERIOD = 20


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
            head_input_relu=node.HEAD_INPUT_RELU,
            mobilenet="mobilenet" in cfg.MODEL.BACKBONE.NAME,
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
        key = "SKIP" if error.value in cfg.MODEL.QUANT.SKIP else "RULES"
    return error.renamed(f"MODEL.QUANT.{key.upper()}" + (f": {option}" if option else ""))


def retinanet_quant_config(
    skip: Sequence[str],
    rules: Sequence[str],
    *,
    head_input_relu: bool,
    mobilenet: bool = False,
    **options: Any,
) -> QuantConfig:
    """Return the core's config of a RetinaNet.

    Args:
        skip: globs of layers to keep in full precision; of the default, `FIRST_AND_LAST`, some may
            match nothing.
        rules: exceptions, as in ``MODEL.QUANT.RULES``.
        head_input_relu: whether the head has a ReLU on its inputs.
        mobilenet: whether the backbone is MobileNetV2, with its linear bottlenecks.
        **options: fields of `QuantConfig`.
    """
    is_default = tuple(skip) == FIRST_AND_LAST
    if is_default:
        skip = (*FIRST_AND_LAST, *OTHERS_FIRST_AND_LAST)
    signed = list(SIGNED_INPUTS)
    if mobilenet:
        signed += MOBILENET_SIGNED_INPUTS
    if not head_input_relu:
        signed += ["head.cls_subnet.0", "head.bbox_subnet.0"]
    made = [QuantRule(pattern=pattern, skip=True, optional=is_default) for pattern in skip]
    made += [QuantRule(pattern=pattern, signed_input=True, optional=True) for pattern in signed]
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
    pattern, *words = text.split() or [""]
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
