import re

import pytest
from detectron2.modeling import build_model

from tr_det.detection import QuantTrainer
from tr_det.detection.config.checks import check_config, value_of


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("SOLVER.MAX_ITER", 0, "at least 1"),
        ("SOLVER.IMS_PER_BATCH", 0, "at least 1"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "at least 1"),
        ("SOLVER.BASE_LR", 0.0, "positive"),
        ("SOLVER.BASE_LR", float("nan"), "positive"),
        ("SOLVER.MOMENTUM", 1.0, r"in \[0, 1\)"),
        ("SOLVER.WEIGHT_DECAY", -1e-4, "not negative"),
        ("SOLVER.BETAS", (0.9,), r"two numbers, each in \[0, 1\)"),
        ("SOLVER.BETAS", (0.9, 1.0), r"two numbers, each in \[0, 1\)"),
        ("SOLVER.WEIGHT_DECAY_BIAS", 10**400, "not negative"),
        ("SOLVER.SCALE_LR_FACTOR", -0.1, "not negative"),
        ("SOLVER.TR.FACTOR", 0.0, r"in \(0, 1\]"),
        ("SOLVER.TR.FACTOR", -0.5, r"in \(0, 1\], or .*-1\.0"),
        ("SOLVER.TR.MOMENTUM", 1.0, r"None or in \[0, 1\)"),
        ("SOLVER.TR.SCHEDULE", "cosin", "one of"),
        ("SOLVER.TR.UPDATE", "pid", "one of"),
        ("SOLVER.TR.SIGNAL", "steps", "one of"),
        ("SOLVER.TR.GRANULARITY", "net", "one of"),
        ("SOLVER.TR.GAIN", -1.0, "None, or finite and not negative"),
        ("SOLVER.TR.LOG_PERIOD", 0, "at least 1"),
        ("SOLVER.TR.REPLAY", "output/first", "'' with SOLVER.OPTIMIZER=SGD, .*TR scheduling"),
        ("SOLVER.OPTIMIZER", "SGDD", r"one of \['Adagrad'"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full", r"one of \['norm', 'value'\]"),
        ("SOLVER.AMP.DTYPE", "float8", r"one of \['auto'"),
        ("SOLVER.AMP.DTYPE", "float16", "'bfloat16' or 'auto' on a CPU"),
        ("TEST.AUG.ENABLED", True, "False"),
        ("TEST.EXPECTED_RESULTS", [["segm", "AP", 3, 1]], r"a list .* a task of \['bbox'\]"),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", "x", 1]], r"a list of \[task, metric, "),
        ("MODEL.META_ARCHITECTURE", "QuantRetinaNett", "one of .*'QuantRetinaNet'"),
        ("MODEL.BACKBONE.NAME", "resnet", "one of .*'build_quant_resnet_backbone'"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "None", "one of .*'DefaultAnchorGenerator'"),
        ("MODEL.RESNETS.DEPTH", 19, r"one of \[18, 34"),
        ("MODEL.RESNETS.RES5_DILATION", 2, "1 for ResNet-18"),
        ("MODEL.RESNETS.NUM_GROUPS", 32, "1 for ResNet-18"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True], r"\[False, .* for ResNet-18"),
        ("MODEL.QUANT.WEIGHT_BITS", 0, "from 1 to 8"),
        ("MODEL.QUANT.ACT_BITS", 9, "from 1 to 8"),
        ("MODEL.QUANT.WEIGHT_QUANTIZER", "fixed_gird", r"one of \["),
        ("MODEL.QUANT.OUTPUT_SCALE", "sometimes", r"one of \["),
        ("MODEL.QUANT.CALIBRATION_BATCHES", 0, "at least 1"),
        ("MODEL.DEVICE", "gpu", "'cpu', 'cuda' or 'cuda:N'"),
        ("MODEL.DEVICE", "cuda:99", "('cpu', as no GPU|'cuda', or 'cuda:N' with N below)"),
        ("OUTPUT_DIR", "", "the name of a folder"),
        ("DATALOADER.NUM_WORKERS", -1, "from 0 to 128"),
        ("INPUT.MIN_SIZE_TRAIN", (0,), "a list, each an integer, at least 1"),
        ("INPUT.MIN_SIZE_TRAIN", (), "a list"),
        ("INPUT.MIN_SIZE_TRAIN", (64.5,), "a list"),
        ("MODEL.BACKBONE.FREEZE_AT", 9, "from 0 to 5"),
        ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", -2.0, "not negative"),
        ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", -2.0, r"in \[0, 1\], or -1"),
        ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", -0.1, "not negative"),
        ("TEST.DETECTIONS_PER_IMAGE", -1, "at least 1"),
        ("DATASETS.TEST", (["val"],), "a list of names"),
        ("MODEL.RETINANET.NUM_CONVS", 0, "at least 1"),
        ("MODEL.FPN.IN_FEATURES", [[0], "res4"], "a list of names"),
        ("MODEL.PIXEL_STD", [1.0], "3 numbers with INPUT.FORMAT BGR"),
        ("INPUT.FORMAT", "GBR", "one of .*'BGR'"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], []], "a list of positive numbers, or of"),
        ("SOLVER.STEPS", (20, 10), "integers in ascending order"),
        ("MODEL.RETINANET.IOU_LABELS", [0, 1], "one more than MODEL.RETINANET.IOU_THRESHOLDS"),
        ("MODEL.RETINANET.IOU_THRESHOLDS", [0.5, 0.4], "numbers in .* ascending"),
        ("SOLVER.REFERENCE_WORLD_SIZE", 9, "0, or a number that divides SOLVER.IMS_PER_BATCH 2"),
        ("SEED", 2**32, r"below 2\*\*31"),
        ("SOLVER.BASE_LR", None, "positive"),
    ],
)
def test_values_that_cannot_work_are_refused_with_what_is_allowed(make_config, key, value, allowed):
    cfg = make_config("SOLVER.OPTIMIZER", "SGD", "SOLVER.AMP.ENABLED", True)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    check_config(cfg)
    parent, _, leaf = key.rpartition(".")
    (value_of(cfg, parent) if parent else cfg)[leaf] = value
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}=.*: must be {allowed}") as caught:
        check_config(cfg)
    assert str(caught.value).startswith(f"{key}={value!r}: ")


@pytest.mark.parametrize(
    ("architecture", "key", "value", "glob"),
    [
        ("QuantRetinaNet", "SKIP", ["*stem.conv1", "haed.*"], "haed.*"),
        ("QuantRetinaNet", "RULES", ["haed.* weight_bits=8"], "haed.*"),
        ("RetinaNet", "SKIP", ["*stem.conv1", "haed.*"], "haed.*"),
        # The head is not quantized there.
        ("RetinaNet", "RULES", ["head.cls_subnet.* weight_bits=8"], "head.cls_subnet.*"),
    ],
)
def test_a_glob_that_matches_no_layer_is_reported_by_its_key(
    make_config, architecture, key, value, glob
):
    cfg = make_config("MODEL.META_ARCHITECTURE", architecture)
    cfg.MODEL.QUANT[key] = value
    with pytest.raises(ValueError) as caught:
        QuantTrainer.build_model(cfg)
    message = str(caught.value)
    assert message.startswith(f"MODEL.QUANT.{key}={glob!r}: must be ")
    assert "matches a layer; layers are backbone." in message


def test_rules_may_name_layers_of_the_backbone_under_detectron2s_architectures(make_config):
    cfg = make_config("MODEL.META_ARCHITECTURE", "RetinaNet")
    cfg.MODEL.QUANT.RULES = ["backbone.*res2* weight_bits=8"]
    cfg.MODEL.QUANT.SKIP = ["*stem.conv1", "head.cls_score"]  # the head is not quantized anyway
    report = QuantTrainer.build_model(cfg).quant_report
    assert {layer.weight_bits for layer in report.quantized if "res2" in layer.name} == {8}


def test_a_layer_that_a_quantizer_cannot_serve_is_named(make_config):
    rules = ["*fpn_output3 act_bits=1 signed_input=True"]
    cfg = make_config("MODEL.QUANT.ACT_QUANTIZER", "pact", "MODEL.QUANT.RULES", rules)
    message = r"^MODEL\.QUANT\.ACT_BITS=1: must be from 2 to 8 .*'backbone\.fpn_output3'"
    with pytest.raises(ValueError, match=message):
        QuantTrainer.build_model(cfg)


def test_what_detectron2_asserts_about_a_model_is_a_value_error(make_config):
    cfg = make_config("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone")
    with pytest.raises(ValueError, match="Detectron2 cannot build it: Must set MODEL.RESNETS.RES2"):
        build_model(cfg)


def test_norms_that_need_gpus_are_refused_with_several_processes_without(make_config, monkeypatch):
    cfg = make_config("MODEL.RESNETS.NORM", "SyncBN")
    check_config(cfg)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"MODEL\.RESNETS\.NORM='SyncBN': must be 'naiveSyncBN'"):
        check_config(cfg)
    cfg.MODEL.RESNETS.NORM = "naiveSyncBN"
    check_config(cfg)
