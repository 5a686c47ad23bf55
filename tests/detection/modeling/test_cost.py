import logging

import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import nn

from tests.tiny import ROOT
from tr_det.core import QuantConfig, dequantize_layers, quantize_model
from tr_det.core.nn.storage import storage_mb
from tr_det.detection.config.reading import load_config
from tr_det.detection.modeling.cost import counted_macs, log_cost, measure_cost


class DenseParts(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.backbone, self.head, self.names = model.backbone, model.head, model.head_in_features

    def forward(self, x):
        features = self.backbone(x)
        return self.head([features[name] for name in self.names])


def test_macs_are_fvcores(make_config):
    """fvcore calls a multiply-accumulate one flop."""
    model = build_model(make_config())
    cost = measure_cost(model, (64, 96))
    dequantize_layers(model)
    analysis = FlopCountAnalysis(DenseParts(model.eval()), torch.zeros(1, 3, *cost.image_size))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = analysis.by_operator()
    assert cost.macs == by_operator["conv"]


def test_a_known_retinanet():
    """ResNet-50 at 800 x 800: 146 G in Detectron2's own test of its flop counter."""
    path = ROOT / "configs/COCO-Detection/retinanet_R_50_FPN_qat_sgdt.yaml"
    # The stride as there.
    cfg = load_config(path, ["MODEL.DEVICE", "meta", "MODEL.RESNETS.STRIDE_IN_1X1", True])
    with torch.device("meta"):
        model = build_model(cfg)
    cost = measure_cost(model, (800, 800))
    assert cost.macs / 1e9 == pytest.approx(146, abs=0.5)
    # All weights in 4 bits but for stem, cls_score and bbox_pred.
    outside = 64 * 3 * 49 + (720 + 36) * 256 * 9
    inside = 37_910_720 - outside
    others = sum(p.numel() for p in model.parameters()) - inside  # norms, biases, scales as well
    assert cost.megabytes == (4 * inside + 32 * others) / 8e6
    assert cost.full_megabytes == 32 * (inside + others) / 8e6


def test_bops_are_macs_times_bits(make_config):
    skip_nothing = ("MODEL.QUANT.SKIP", [])
    model = build_model(make_config("MODEL.QUANT.WEIGHT_BITS", 2, *skip_nothing))
    cost = measure_cost(model, (64, 64))
    assert cost.bops == cost.macs * 2 * 4
    assert cost.full_bops == cost.macs * 32 * 32
    plain = measure_cost(build_model(make_config("MODEL.QUANT.ENABLED", False)), (64, 64))
    assert plain.bops == plain.full_bops == cost.full_bops
    assert plain.megabytes == plain.full_megabytes


def test_grouped_transposed_and_linear_layers_by_hand():
    model = nn.ModuleList(
        [nn.Conv2d(8, 4, 3, groups=4), nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Linear(5, 7)]
    )
    with counted_macs(model) as macs:
        model[0](torch.zeros(2, 8, 5, 5))
        model[1](torch.zeros(1, 4, 3, 3))
        model[2](torch.zeros(10, 5))
        model[2](torch.zeros(1, 5))  # calls add up
    assert macs == {"0": 2 * 4 * 9 * 2 * 9, "1": 4 * 9 * 6 * 4, "2": 11 * 35}


def test_tied_weights_are_counted_once():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    assert storage_mb(model) == (64 * 4e-6, 64 * 4e-6)
    report = quantize_model(model, QuantConfig(weight_bits=4))
    scales = sum(p.numel() for p in model.parameters()) - 64
    assert storage_mb(model) == ((64 * 4 + scales * 32) / 8e6, (64 + scales) * 4e-6)
    assert report.storage_mb() * 8e6 == 64 * 4


def test_measuring_leaves_the_model_as_it_is(make_config):
    model = build_model(make_config())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    measure_cost(model, (64, 64))
    assert [type(m) for m in model.modules()] == kinds
    assert model.training
    for key, value in model.state_dict().items():  # scales are still unset: NaN
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True, msg=key)


def test_images_of_one_channel_and_images_that_are_not_resized(make_config, caplog):
    cfg = make_config("MODEL.PIXEL_MEAN", [127.5], "MODEL.PIXEL_STD", [64.0], "INPUT.FORMAT", "L")
    cfg.INPUT.MIN_SIZE_TEST = 0
    with caplog.at_level(logging.INFO):
        cost = log_cost(build_model(cfg), cfg)
    assert cost.image_size == (64, 64)
    assert "Cost: parameters " in caplog.text
    assert "at 64 x 64" in caplog.text


def test_a_model_that_cannot_be_counted_is_no_error(make_config, caplog):
    cfg = make_config()
    model = build_model(cfg)
    model.backbone.bottom_up.stem.forward = lambda x: x.tolist()
    assert log_cost(model, cfg) is None
    assert "Cost: not counted (" in caplog.text
