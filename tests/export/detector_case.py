"""A small detector: its metadata, its outputs, its ONNX file, and what Detectron2 makes of it."""

import dataclasses

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList
from onnx import TensorProto, helper, numpy_helper
from torch.nn.functional import avg_pool2d, conv2d
from torchvision.ops import boxes as torchvision_boxes

from tr_det.export.metadata import DetectorSpec, InputSpec, Metadata, ShortestEdge
from tr_det.export.runtimes import METADATA_KEY

STRIDES = (8, 16, 32)
LEVELS = ("p3", "p4", "p5")
NUM_CLASSES = 5
SIZES = [[16, 24], [32, 48], [64, 96]]
RATIOS = [[0.5, 1.0, 2.0]]
ANCHORS = 6  # of a cell


def anchor_generator(offset=0.0):
    return DefaultAnchorGenerator(sizes=SIZES, aspect_ratios=RATIOS, strides=STRIDES, offset=offset)


def make_metadata(offset=0.0, **changes):
    """Return metadata with changes of the detector."""
    anchors = anchor_generator(offset).cell_anchors
    detector = DetectorSpec(
        levels=LEVELS,
        strides=STRIDES,
        cell_anchors=tuple(tuple(map(tuple, level.tolist())) for level in anchors),
        anchor_offset=offset,
        box_weights=(1.0, 1.0, 2.0, 2.0),
        scale_clamp=float(np.log(1000 / 16)),
        score_threshold=0.05,
        candidates_per_level=1000,
        nms_threshold=0.5,
        detections_per_image=100,
    )
    mean, std = (103.5, 116.3, 123.7), (61.0, 57.1, 57.4)
    return Metadata(
        format="qcdq",
        task="detection",
        input=InputSpec(3, "BGR", 1.0, mean, std, 32, ShortestEdge(64, 96)),
        classes=tuple("abcde"),
        category_ids=(1, 2, 3, 5, 8),
        detector=dataclasses.replace(detector, **changes),
        layers=({"name": "conv", "weight_bits": 4, "input_bits": 4},),
        versions={"tr_det": "0.1.0"},
        checkpoint={"file": "model_final.pth", "sha256": "00"},
        config="A: 1\n",
    )


def random_outputs(seed, batch=1, padded=(96, 128), low=-7.0, high=3.0, spread=0.4):
    """Return outputs whose scores are all different and not close: rounding cannot swap two."""
    random = np.random.default_rng(seed)
    grids = [(padded[0] // stride, padded[1] // stride) for stride in STRIDES]
    shapes = [(batch, ANCHORS * NUM_CLASSES, *grid) for grid in grids]
    counts = [int(np.prod(shape)) for shape in shapes]
    logits = random.permutation(np.linspace(low, high, sum(counts))).astype(np.float32)
    parts = np.split(logits, np.cumsum(counts)[:-1])
    found = {f"logits.{n}": p.reshape(shape) for n, p, shape in zip(LEVELS, parts, shapes)}
    for level, grid in zip(LEVELS, grids):
        deltas = random.normal(0, spread, (batch, ANCHORS * 4, *grid))
        found[f"deltas.{level}"] = deltas.astype(np.float32)
    return found


def class_by_class(monkeypatch):
    """Keep torchvision from moving the boxes of classes aside (see decode.py)."""
    name, other = "_batched_nms_coordinate_trick", "_batched_nms_vanilla"
    monkeypatch.setattr(torchvision_boxes, name, getattr(torchvision_boxes, other))


class Pools(torch.nn.Module):
    """A backbone: means of squares of pixels."""

    size_divisibility = 32

    def output_shape(self):
        return {level: ShapeSpec(3, stride=stride) for level, stride in zip(LEVELS, STRIDES)}

    def forward(self, images):
        return {level: avg_pool2d(images, stride) for level, stride in zip(LEVELS, STRIDES)}


def head_weights():
    random = np.random.default_rng(0)
    count = ANCHORS * NUM_CLASSES
    logits = random.normal(0, 0.7, (count, 3, 1, 1)).astype(np.float32)
    bias = random.normal(-2.5, 1, count).astype(np.float32)
    deltas = random.normal(0, 0.3, (ANCHORS * 4, 3, 1, 1)).astype(np.float32)
    return logits, bias, deltas


class Head(torch.nn.Module):
    def forward(self, features):
        logits, bias, deltas = map(torch.tensor, head_weights())
        return [conv2d(x, logits, bias) for x in features], [conv2d(x, deltas) for x in features]


def build_retinanet(metadata):
    """Return Detectron2's model of the metadata, with `Pools` and `Head`."""
    detector = metadata.detector
    model = RetinaNet(
        backbone=Pools(),
        head=Head(),
        head_in_features=list(detector.levels),
        anchor_generator=anchor_generator(detector.anchor_offset),
        box2box_transform=Box2BoxTransform(detector.box_weights, detector.scale_clamp),
        anchor_matcher=None,
        num_classes=NUM_CLASSES,
        pixel_mean=metadata.input.mean,
        pixel_std=metadata.input.std,
        test_score_thresh=detector.score_threshold,
        test_topk_candidates=detector.candidates_per_level,
        test_nms_thresh=detector.nms_threshold,
        max_detections_per_image=detector.detections_per_image,
    )
    return model.eval()


def decoded_by_detectron2(outputs, metadata, image_sizes, original_sizes):
    """Return (boxes, scores, labels) of each image."""
    tensors = {name: torch.tensor(values) for name, values in outputs.items()}
    predictions = [[tensors[f"{kind}.{n}"] for n in LEVELS] for kind in ("logits", "deltas")]
    images = ImageList(torch.zeros(1), list(image_sizes))
    instances = build_retinanet(metadata).forward_inference(images, predictions[0], predictions)
    return [arrays(detector_postprocess(i, *size)) for i, size in zip(instances, original_sizes)]


def arrays(instances):
    fields = instances.pred_boxes.tensor, instances.scores, instances.pred_classes
    return tuple(field.numpy() for field in fields)


def write_onnx(path, metadata):
    """Write `Pools` and `Head` as an exported file."""
    logits, bias, deltas = head_weights()
    constants = {"weight": logits, "bias": bias, "delta_weight": deltas}
    nodes, outputs = [], []
    for level, stride in zip(LEVELS, STRIDES):
        pool = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
        nodes += [
            helper.make_node("AveragePool", ["images"], [level], **pool),
            helper.make_node("Conv", [level, "weight", "bias"], [f"logits.{level}"]),
            helper.make_node("Conv", [level, "delta_weight"], [f"deltas.{level}"]),
        ]
    for kind in ("logits", "deltas"):
        outputs += [
            helper.make_tensor_value_info(f"{kind}.{n}", TensorProto.FLOAT, None) for n in LEVELS
        ]
    shape = ["N", 3, "H", "W"]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    write_model(path, helper.make_graph(nodes, "detector", [images], outputs, stored), metadata)


def write_model(path, graph, metadata):
    """Write an ONNX file with metadata, unless they are None."""
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if metadata is not None:
        helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    path.write_bytes(model.SerializeToString())
