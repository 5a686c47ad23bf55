"""The project's config keys; `tr_det.detection.config.quantization` reads those of MODEL.QUANT."""

from __future__ import annotations

from detectron2.config import CfgNode as CN  # noqa: N817  Detectron2's own habit

from tr_det.core.transition.settings import config_defaults

FIRST_AND_LAST = ("*stem.conv1", "head.cls_score", "head.bbox_pred")
"""Globs of a RetinaNet's first and last layers."""


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
    # last ones. For other architectures than QuantRetinaNet the default names theirs as well.
    cfg.MODEL.QUANT.SKIP = list(FIRST_AND_LAST)
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

    # ---- any model of timm with feature maps, for backbones with that name ----
    cfg.MODEL.TIMM = CN()
    # timm's name, with or without a tag, e.g. "tf_efficientnet_lite0", "resnet18d.ra2_in1k".
    cfg.MODEL.TIMM.NAME = ""
    # Arguments of timm.create_model, "key=value" each, e.g. ["drop_path_rate=0.1"].
    cfg.MODEL.TIMM.OPTIONS = []
    # Weights of the backbone alone: a file with timm's names, or "library" for timm's download;
    # "": random. Those of a whole detector (MODEL.WEIGHTS, --resume) come after and replace them.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # Batch norms: "BN" (the model's own norms), "SyncBN", or "FrozenBN".
    cfg.MODEL.TIMM.NORM = "BN"
    # Of res2 to res5, named by their strides as a ResNet's.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res3", "res4", "res5"]
    # "weights": MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT are those that the model's
    # published weights expect (RGB); "config": as these keys say.
    cfg.MODEL.TIMM.NORMALIZATION = "weights"

    # ---- data ----
    # COCO-format datasets to register, a text each: "NAME ANNOTATIONS.json IMAGES", or
    # "NAME FOLDER" of a folder of tools/prepare_dataset.py. The number of classes is their files'
    # unless it is given.
    cfg.DATASETS.REGISTER = []

    # ---- checkpoints ----
    # Allow MODEL.WEIGHTS to lack keys, have others or other shapes, e.g. to start from an ImageNet
    # backbone.
    cfg.MODEL.ALLOW_PARTIAL_WEIGHTS = False
    # How many checkpoints with a number to keep, the last ones written; 0: all, as Detectron2 does.
    cfg.SOLVER.KEEP_CHECKPOINTS = 2

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
    # Learning rate of quantized weights under a plain optimizer, relative to BASE_LR. Under TR
    # scheduling, whose TALR is their rate, it must be 1.
    cfg.SOLVER.QUANT_WEIGHT_LR_FACTOR = 1.0
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
    # A run's folder: each layer's TALR is played back from its metrics.json instead of controlled.
    cfg.SOLVER.TR.REPLAY = ""
    # What is played back: "curve", the TALRs themselves, or "cosine", which falls from twice their
    # mean to 0.
    cfg.SOLVER.TR.REPLAY_AS = "curve"
