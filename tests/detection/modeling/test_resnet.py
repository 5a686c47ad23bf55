import pytest
import torch
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torch import nn

from tests.tiny import ROOT
from tr_det.core import OutputScale, Quantizer, quantized_layers, set_scales
from tr_det.detection import QuantConv2dNorm, QuantTrainer, build_optimizer
from tr_det.detection.config.reading import load_config


def on_meta(cfg):
    """Build the model without storage: shapes and names only."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def coco_config(depth, quantized=True):
    path = ROOT / f"configs/COCO-Detection/retinanet_R_{depth}_FPN_qat_sgdt.yaml"
    pairs = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.QUANT.ENABLED", quantized]
    return load_config(path, pairs)


@pytest.mark.parametrize(
    ("depth", "convs", "quantized", "weights"),
    [(18, 38, 35, 21_395_648), (34, 54, 51, 31_496_384), (50, 71, 68, 37_910_720)],
)
def test_coco_retinanets_are_quantized_but_for_first_and_last(depth, convs, quantized, weights):
    model = on_meta(coco_config(depth))
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convs
    report = model.quant_report
    assert len(report.quantized) == quantized
    assert sum(layer.num_weights for layer in report.layers) == weights
    assert {layer.name for layer in report.skipped} == {
        "backbone.bottom_up.stem.conv1",
        "head.cls_score",
        "head.bbox_pred",
    }


def test_parameters_are_detectron2s_plus_scales():
    cfg = coco_config(50, quantized=False)
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    plain = on_meta(cfg)
    cfg.MODEL.QUANT.ENABLED = True
    model = on_meta(cfg)
    assert sum(p.numel() for p in plain.parameters()) == 37_915_572  # upstream's own test
    scales = sum(isinstance(m, Quantizer | OutputScale) for m in model.modules())
    assert sum(p.numel() for p in model.parameters()) == 37_915_572 + scales
    # FrozenBN absorbs no scale, so every quantized layer needs an output scale.
    assert all(layer.output_scale is not None for _, layer in quantized_layers(model))


@pytest.mark.parametrize("head_input_relu", [True, False])
def test_signed_grids_are_where_inputs_can_be_negative(head_input_relu, make_config, storage):
    cfg = make_config("MODEL.QUANT.HEAD_INPUT_RELU", head_input_relu)
    model = build_model(cfg)
    batch = next(iter(QuantTrainer.build_train_loader(cfg)))
    set_scales(model, lambda: model(batch))
    expected = {f"backbone.fpn_output{level}" for level in (3, 4, 5)}
    if not head_input_relu:
        expected |= {"head.cls_subnet.0", "head.bbox_subnet.0"}
    signed = {name for name, layer in quantized_layers(model) if layer.input_quantizer.signed}
    assert signed == expected


@pytest.mark.parametrize("depth", [18, 50])
def test_in_full_precision_it_is_detectron2s_backbone_bit_for_bit(depth):
    cfg = coco_config(depth, quantized=False)
    shape = ShapeSpec(channels=3)
    ours = BACKBONE_REGISTRY.get("build_retinanet_quant_resnet_fpn_backbone")(cfg, shape)
    theirs = BACKBONE_REGISTRY.get("build_retinanet_resnet_fpn_backbone")(cfg, shape)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, got = theirs(x), ours(x)
    for level in expected:
        torch.testing.assert_close(got[level], expected[level], rtol=0, atol=0)


def test_the_backbone_alone_is_quantized_under_detectron2s_own_retinanet():
    cfg = coco_config(18)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    model = on_meta(cfg)
    names = [name for name, _ in quantized_layers(model)]
    assert len(names) == 38 - 10 - 1  # all but the head and the stem
    assert all(name.startswith("backbone.") for name in names)


def test_layers_in_detectron2s_plain_lists_are_the_quantized_ones():
    fpn = on_meta(coco_config(18)).backbone
    assert all(isinstance(conv, QuantConv2dNorm) for conv in fpn.lateral_convs + fpn.output_convs)
    assert not any(type(m) is Conv2d for m in fpn.modules() if m is not fpn.bottom_up.stem.conv1)


@pytest.mark.parametrize("own_builder", [True, False])
def test_scales_of_frozen_stages_are_frozen_and_only_those(own_builder):
    cfg = coco_config(18)
    cfg.MODEL.BACKBONE.FREEZE_AT = 3
    if not own_builder:
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    model = QuantTrainer.build_model(cfg)
    frozen = set()
    for name, layer in quantized_layers(model):
        trained = {p.requires_grad for p in (layer.weight, layer.input_quantizer.scale)}
        if layer.output_scale is not None:
            trained.add(layer.output_scale.scale.requires_grad)
        assert len(trained) == 1, name
        if trained == {False}:
            frozen.add(name.split(".")[2])
    assert frozen == {"res2", "res3"}
    held = {p for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    assert held == {p for p in model.parameters() if p.requires_grad}
