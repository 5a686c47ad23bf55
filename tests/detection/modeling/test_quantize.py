"""Detectors that do not quantize themselves: W4A4, two iterations, an evaluation, a report."""

import pytest
import torch
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage
from torchvision.models import mobilenet_v2

from tr_det.core import quantized_layers, set_scales
from tr_det.detection import MobileNetV2, QuantTrainer, build_optimizer, quantize_detector


def rcnn(make_config, *overrides):
    cfg = make_config("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", *overrides)
    model = cfg.MODEL
    model.BACKBONE.NAME = "build_resnet_fpn_backbone"
    model.RESNETS.STEM_OUT_CHANNELS = model.RESNETS.RES2_OUT_CHANNELS = 64
    model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [48], [64]]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 20
    model.ROI_HEADS.NAME = "StandardROIHeads"
    model.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 10, 8
    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.NUM_FC, model.ROI_BOX_HEAD.FC_DIM = 2, 32
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    return cfg


def mask_rcnn(make_config):
    cfg = rcnn(make_config, "MODEL.MASK_ON", True)
    head = cfg.MODEL.ROI_MASK_HEAD
    head.NAME, head.NUM_CONV, head.CONV_DIM = "MaskRCNNConvUpsampleHead", 2, 8
    return cfg, QuantTrainer.build_model(cfg)


def dense(make_config, arch):
    """Return a quantized detector on RegNet, which has no builder for yacs."""
    cfg = make_config("MODEL.DEVICE", "cpu")
    parts = RetinaNet.from_config(cfg)
    regnet = RegNet(
        stem_class=SimpleStem,
        stem_width=8,
        block_class=ResBottleneckBlock,
        depth=6,
        w_a=8.0,
        w_0=8,
        w_m=2.0,
        group_width=8,
        se_ratio=0.25,
        norm="BN",
        out_features=["s2", "s3", "s4"],
    )
    parts["backbone"] = FPN(
        regnet, ["s2", "s3", "s4"], 16, norm="BN", top_block=LastLevelP6P7(16, 16, "p5")
    )
    model = arch(parts)
    quantize_detector(model, cfg)
    return cfg, model


def retinanet_on_regnet(make_config):
    return dense(make_config, lambda parts: RetinaNet(**parts))


def fcos(make_config):
    fcos = pytest.importorskip(
        "detectron2.modeling.meta_arch.fcos", reason="Detectron2 v0.6 has no FCOS"
    )

    def build(parts):
        shapes = [parts["backbone"].output_shape()[f"p{level}"] for level in range(3, 8)]
        return fcos.FCOS(
            backbone=parts["backbone"],
            head=fcos.FCOSHead(input_shape=shapes, num_classes=10, conv_dims=[16, 16]),
            num_classes=10,
            pixel_mean=parts["pixel_mean"],
            pixel_std=parts["pixel_std"],
        )

    return dense(make_config, build)


# Builder, layers left alone, some of the layers whose inputs can be negative.
MODELS = {
    "RetinaNet-RegNet": (
        retinanet_on_regnet,
        {"backbone.bottom_up.stem.conv", "head.cls_score", "head.bbox_pred"},
        {"head.cls_subnet.0", "head.bbox_subnet.0", "backbone.top_block.p6"},
    ),
    "FCOS": (
        fcos,
        {"backbone.bottom_up.stem.conv", "head.cls_score", "head.bbox_pred", "head.ctrness"},
        {"head.cls_subnet.0", "head.bbox_subnet.0"},
    ),
    "Mask R-CNN": (
        mask_rcnn,
        # The deconvolution has no quantized class, and is reported so.
        {
            "backbone.bottom_up.stem.conv1",
            "roi_heads.mask_head.predictor",
            "roi_heads.mask_head.deconv",
            "proposal_generator.rpn_head.objectness_logits",
            "proposal_generator.rpn_head.anchor_deltas",
            "roi_heads.box_predictor.cls_score",
            "roi_heads.box_predictor.bbox_pred",
        },
        {
            "proposal_generator.rpn_head.conv",
            "roi_heads.box_head.fc1",
            "roi_heads.mask_head.mask_fcn1",
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_detector_trains_and_evaluates_at_w4a4(name, make_config, tiny, tmp_path):
    torch.manual_seed(0)
    build, left_alone, signed = MODELS[name]
    cfg, model = build(make_config)
    report = model.quant_report
    assert {layer.name for layer in report.skipped} == left_alone
    assert {(x.weight_bits, x.act_bits) for x in report.quantized} == {(4, 4)}
    optimizer = build_optimizer(cfg, model)
    layers = dict(quantized_layers(model))
    before = {key: layer.weight.detach().clone() for key, layer in layers.items()}
    with EventStorage():
        for _, batch in zip(range(2), QuantTrainer.build_train_loader(cfg), strict=False):
            if cfg.MODEL.MASK_ON:
                add_masks(batch)
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert signed <= {key for key, layer in layers.items() if layer.input_quantizer.signed}
    # Every quantized layer took part: it has its scales, and its weight has moved.
    for key, layer in layers.items():
        assert layer.input_quantizer.is_calibrated, key
        assert not torch.equal(layer.weight, before[key]), key
    evaluator = COCOEvaluator(
        tiny.VAL, tasks=("bbox",), output_dir=str(tmp_path), use_fast_impl=False
    )
    results = inference_on_dataset(model, QuantTrainer.build_test_loader(cfg, tiny.VAL), evaluator)
    assert "bbox" in results


def add_masks(batch):
    for sample in batch:
        instances = sample["instances"]
        masks = torch.zeros(len(instances), *instances.image_size, dtype=torch.bool)
        for mask, box in zip(masks, instances.gt_boxes.tensor.long(), strict=True):
            mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
        instances.gt_masks = BitMasks(masks)


def test_a_model_in_full_precision_or_quantized_already_is_left_as_it_is(make_config):
    cfg = make_config("MODEL.QUANT.ENABLED", False)
    assert quantize_detector(build_model(cfg), cfg) is None
    cfg = make_config()
    model = build_model(cfg)
    layers = [name for name, _ in quantized_layers(model)]
    assert quantize_detector(model, cfg) is None
    assert [name for name, _ in quantized_layers(model)] == layers


def test_mobilenetv2_under_retinanet(make_config, storage):
    torch.manual_seed(0)
    cfg = make_config()
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_quant_mobilenetv2_fpn_backbone"
    cfg.MODEL.MOBILENETV2.WIDTH = 0.25
    model = QuantTrainer.build_model(cfg)
    skipped = {layer.name for layer in model.quant_report.skipped}
    assert skipped == {"backbone.bottom_up.features.0.0", "head.cls_score", "head.bbox_pred"}
    depthwise = [layer for _, layer in quantized_layers(model) if layer.groups > 1]
    assert len(depthwise) == 17
    for _, batch in zip(range(2), QuantTrainer.build_train_loader(cfg), strict=False):
        set_scales(model, lambda batch=batch: model(batch))
        losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    # The FPN reads linear bottlenecks, but for res5.
    bottlenecks = [*(f"{block}.conv.0.0" for block in range(2, 18)), "18.0"]
    expected = {f"backbone.bottom_up.features.{name}" for name in bottlenecks}
    expected |= {f"backbone.{x}" for x in ("fpn_lateral3", "fpn_lateral4")}
    expected |= {f"backbone.fpn_output{level}" for level in (3, 4, 5)}
    signed = {name for name, layer in quantized_layers(model) if layer.input_quantizer.signed}
    assert signed == expected
    model.eval()
    with torch.no_grad():
        assert "instances" in model(batch)[0]


def test_mobilenetv2_is_torchvisions():
    theirs = mobilenet_v2(width_mult=0.25).eval()
    ours = MobileNetV2(width=0.25, out_features=("res2", "res3", "res4", "res5")).eval()
    ours.load_state_dict(
        {k: v for k, v in theirs.state_dict().items() if k.startswith("features.")}
    )
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        outputs = ours(x)
        torch.testing.assert_close(outputs["res5"], theirs.features(x), rtol=0, atol=0)
        torch.testing.assert_close(outputs["res4"], theirs.features[:14](x), rtol=0, atol=0)
    for name, spec in ours.output_shape().items():
        assert outputs[name].shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_an_unknown_mobilenetv2_feature_is_refused():
    with pytest.raises(ValueError, match=r"out_features=\['res9'\].*must be of"):
        MobileNetV2(out_features=("res9",))


def test_faster_rcnn_trains_and_evaluates_through_the_trainer(make_config):
    cfg = rcnn(make_config, "SOLVER.MAX_ITER", 2)
    trainer = QuantTrainer(cfg)
    trainer.train()
    assert trainer.iter == 2
    assert "AP" in trainer._last_eval_results["bbox"]
    assert (trainer.optimizer.transition_metrics().talr > 0).all()
