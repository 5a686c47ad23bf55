"""Detectors of any origin: quantized, calibrated, two iterations, without a list of layers."""

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config
from detectron2.modeling import build_model
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.models import detection as torchvision_detection

from tr_det.core import SGDT, QuantConfig, attach, quantize_model, quantized_layers, tr_param_groups
from tr_det.detection.lazy import resnet_stages

CLASSES = 3
SIZE = 64


def targets() -> list[Instances]:
    found = []
    for _ in range(2):
        one = Instances((SIZE, SIZE))
        corners = torch.rand(2, 2) * 20
        one.gt_boxes = Boxes(torch.cat([corners, corners + 24], dim=1))
        one.gt_classes = torch.arange(2)
        one.gt_masks = BitMasks(torch.ones(2, SIZE, SIZE, dtype=torch.bool))
        found.append(one)
    return found


def detectron2_batch():
    def image():
        return torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)

    labels = torch.zeros(SIZE, SIZE, dtype=torch.int64)
    return [{"image": image(), "instances": t, "sem_seg": labels} for t in targets()]


def torchvision_batch():
    boxes = [{"boxes": t.gt_boxes.tensor, "labels": t.gt_classes + 1} for t in targets()]
    return list(torch.rand(2, 3, SIZE, SIZE)), boxes


def fcos(make_config):
    try:
        model = get_config("common/models/fcos.py").model
    except (RuntimeError, FileNotFoundError):
        pytest.skip("this Detectron2 has no FCOS")
    model.backbone.bottom_up.stem.norm = "BN"
    model.backbone.bottom_up.stages = LazyCall(resnet_stages)(depth=18, norm="BN")
    model.backbone.out_channels = model.backbone.top_block.in_channels = 16
    model.backbone.top_block.out_channels = 16
    model.head.input_shape = [ShapeSpec(channels=16)] * 5
    model.head.conv_dims, model.head.norm = [16, 16], ""
    model.num_classes = CLASSES
    return instantiate(model)


def retinanet(make_config, backbone, levels):
    """Return Detectron2's RetinaNet on a backbone with 16 channels and strides from 8 on."""
    cfg = make_config("MODEL.RETINANET.NUM_CLASSES", CLASSES)
    cfg.MODEL.RETINANET.IN_FEATURES = [f"p{level}" for level in levels]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]][: len(levels)]
    return RetinaNet(**{**RetinaNet.from_config(cfg), "backbone": backbone})


def vitdet(make_config):
    vit = pytest.importorskip("detectron2.modeling.backbone.vit", reason="Detectron2 without ViT")
    body = vit.ViT(img_size=SIZE, embed_dim=16, depth=2, num_heads=2, out_feature="last_feat")
    pyramid = vit.SimpleFeaturePyramid(body, "last_feat", 16, [2.0, 1.0, 0.5], square_pad=SIZE)
    return retinanet(make_config, pyramid, (3, 4, 5))


def swin(make_config):
    module = pytest.importorskip(
        "detectron2.modeling.backbone.swin", reason="Detectron2 without Swin"
    )
    body = module.SwinTransformer(
        embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 2, 2), window_size=4,
        out_indices=(1, 2, 3),
    )  # fmt: skip
    fpn = FPN(body, ["p1", "p2", "p3"], 16, top_block=LastLevelP6P7(16, 16, "p5"))
    return retinanet(make_config, fpn, (3, 4, 5, 6, 7))


def panoptic_fpn(make_config):
    cfg = make_config("MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.MASK_ON", True)
    model = cfg.MODEL
    model.QUANT.ENABLED = False
    model.BACKBONE.NAME = "build_resnet_fpn_backbone"
    model.RESNETS.STEM_OUT_CHANNELS = model.RESNETS.RES2_OUT_CHANNELS = 64
    model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [48], [64]]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model.RPN.POST_NMS_TOPK_TRAIN = 20
    model.ROI_HEADS.NAME, model.ROI_HEADS.IN_FEATURES = "StandardROIHeads", ["p2", "p3", "p4", "p5"]
    model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = CLASSES, 8
    model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    model.ROI_BOX_HEAD.FC_DIM, model.ROI_BOX_HEAD.POOLER_RESOLUTION = 16, 4
    model.ROI_MASK_HEAD.NAME, model.ROI_MASK_HEAD.NUM_CONV = "MaskRCNNConvUpsampleHead", 1
    model.ROI_MASK_HEAD.CONV_DIM = 8
    head = model.SEM_SEG_HEAD
    head.IN_FEATURES, head.NUM_CLASSES = ["p2", "p3", "p4", "p5"], 2
    head.CONVS_DIM, head.NORM = 8, "BN"
    return build_model(cfg)


def torchvision_retinanet(make_config):
    return torchvision_detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=SIZE, max_size=SIZE
    )


def ssdlite(make_config):
    return torchvision_detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=CLASSES
    )


# Builder, batch, an input that can be negative, one that cannot.
DETECTORS = {
    "FCOS": (fcos, detectron2_batch, "head.cls_subnet.0", "head.cls_score"),
    "ViTDet": (vitdet, detectron2_batch, "backbone.net.blocks.0.mlp.fc2", "head.cls_score"),
    "Swin": (swin, detectron2_batch, "backbone.bottom_up.layers.0.blocks.0.attn.qkv", ""),
    "Panoptic FPN": (
        panoptic_fpn,
        detectron2_batch,
        "roi_heads.box_head.fc1",
        "sem_seg_head.predictor",
    ),
    "torchvision's RetinaNet": (
        torchvision_retinanet,
        torchvision_batch,
        "head.classification_head.conv.0.0",
        "head.classification_head.cls_logits",
    ),
    "SSDlite": (
        ssdlite,
        torchvision_batch,
        "backbone.features.0.13.0",
        "head.classification_head.module_list.0.1",
    ),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_trains_two_iterations_without_a_list_of_layers(name, make_config):
    torch.manual_seed(0)
    build, make_batch, signed, unsigned = DETECTORS[name]
    model = build(make_config).train()
    quantize_model(model, QuantConfig(weight_bits=4, act_bits=4))
    groups = tr_param_groups(model, lr=0.001, weight_decay=1e-4)
    optimizer = SGDT(groups, lr=0.001, momentum=0.9, total_steps=2, tr_factor=1e-3)
    attach([], model, optimizer, 2)
    layers = dict(quantized_layers(model))
    batch = make_batch()
    arguments = batch if isinstance(batch, tuple) else (batch,)
    with EventStorage():
        for _ in range(2):
            losses = model(*arguments)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    assert all(torch.isfinite(loss) for loss in losses.values())
    signs = {key: layer.input_quantizer.signed for key, layer in layers.items()}
    assert signs[signed]
    assert not unsigned or not signs[unsigned]
    assert 0 < sum(signs.values()) < len(signs)
