"""A quantized checkpoint and whoever takes it for something else."""

import importlib.util

import pytest
from detectron2.checkpoint import DetectionCheckpointer, detection_checkpoint
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from torch import nn

from tr_det.detection import QuantCheckpointer
from tr_det.detection.checkpoint.label import LABEL, labelled


@pytest.fixture(params=[DetectionCheckpointer, QuantCheckpointer])
def quantized(request, make_config, tmp_path):
    """Return the path of a quantized checkpoint, by Detectron2's checkpointer or our own."""
    request.param(build_model(make_config()), str(tmp_path)).save("w4")
    return str(tmp_path / "w4.pth")


def test_detectron2_without_us_stops_at_it(quantized):
    # A second copy of its module, in which nothing is replaced.
    spec = importlib.util.spec_from_file_location(
        "detectron2.checkpoint.untouched", detection_checkpoint.__file__
    )
    untouched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(untouched)
    with pytest.raises(ValueError, match=LABEL):
        untouched.DetectionCheckpointer(nn.Linear(1, 1)).load(quantized)


def test_a_full_precision_model_stops_at_it(quantized, make_config):
    cfg = make_config("MODEL.QUANT.ENABLED", False, "MODEL.WEIGHTS", quantized)
    message = r"w4\.pth is quantized, in \d+ layers .*\(backbone\.bottom_up\.res2\.0\.conv1,"
    with pytest.raises(ValueError, match=message):
        DefaultPredictor(cfg)
    with pytest.raises(ValueError, match=message):
        QuantCheckpointer(build_model(cfg), allow_partial=True).load(quantized)
    partly = make_config("MODEL.QUANT.SKIP", ["*stem.conv1", "head.*"])
    with pytest.raises(ValueError, match=r"w4\.pth is quantized, in 4 layers .*\(head\.bbox_sub"):
        DetectionCheckpointer(build_model(partly)).load(quantized)


def test_a_model_that_is_quantized_alike_takes_it(quantized, make_config):
    for kind in (DetectionCheckpointer, QuantCheckpointer):
        kind(build_model(make_config())).load(quantized)


def test_it_says_how(make_config):
    model = build_model(make_config("MODEL.QUANT.WEIGHT_BITS", 3))
    assert (
        "weight_quantizer fixed_grid with codes -4 to 3 in 31 layers"
        in (labelled(model.state_dict())[LABEL])
    )
    plain = build_model(make_config("MODEL.QUANT.ENABLED", False)).state_dict()
    assert LABEL not in labelled(plain)
