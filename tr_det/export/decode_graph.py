"""A second ONNX graph that turns a detector's outputs into a fixed number of boxes.

For applications that have a runtime and nothing else. It does what `tr_det.export.decode` does, for
a batch, in px of the resized image:

    inputs   the outputs of the detector's graph, and image_size (N, 2) int64, the heights and
             widths of the resized images without padding
    outputs  boxes (N, D, 4) float32, scores (N, D) float32, labels (N, D) int64; the best first,
             and after the last detection boxes and scores of 0 and labels of -1

The steps of a level end in candidates (N, C). NonMaxSuppression reads scores by class, so each
candidate has a score for its own class and 0 for the others. What it selects is in no order that
both runtimes share; hence the selected are marked, and the best of the marked ones are taken.

Of equal scores the first goes before the others, as ONNX defines TopK. OpenVINO does not keep to
that: there, of two boxes with one score, either may suppress the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tr_det.export.metadata import DetectorSpec, Metadata
from tr_det.export.onnx_parts import finished

IMAGE_SIZE = "image_size"
OUTPUTS = ("boxes", "scores", "labels")


def decode_graph(metadata: Metadata) -> onnx.ModelProto:
    """Return the graph of a detector; it carries the metadata too.

    Args:
        metadata: of the detector's own graph. D is its ``detections_per_image``.

    Raises:
        ValueError: metadata of something else than a detector.
    """
    if metadata.detector is None:
        raise ValueError(f"metadata.task={metadata.task!r}: must be 'detection'")
    detector = metadata.detector
    draft = _Draft()
    _decode(draft, detector, len(metadata.classes))
    value = helper.make_tensor_value_info
    most = detector.detections_per_image
    size: list[str | int | None] = ["N", 2]
    inputs = [value(IMAGE_SIZE, TensorProto.INT64, size)]
    for kind, numbers in (("logits", len(metadata.classes)), ("deltas", 4)):
        for level, anchors in zip(detector.levels, detector.cell_anchors):
            size = ["N", len(anchors) * numbers, f"H_{level}", f"W_{level}"]
            inputs.append(value(f"{kind}.{level}", TensorProto.FLOAT, size))
    outputs = [
        value("boxes", TensorProto.FLOAT, ["N", most, 4]),
        value("scores", TensorProto.FLOAT, ["N", most]),
        value("labels", TensorProto.INT64, ["N", most]),
    ]
    graph = helper.make_graph(draft.nodes, "decode", inputs, outputs, draft.constants)
    return finished(graph, metadata.to_json())


class _Draft:
    """Nodes and constants so far. Values are the names that methods return."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: Any, outputs: int | str = 1, **attributes: Any) -> Any:
        """Add a node; numbers and arrays among the inputs become constants."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        if isinstance(outputs, str):
            results = [outputs]
        else:
            results = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, results, **attributes))
        return results[0] if len(results) == 1 else results

    def constant(self, value: Any) -> str:
        """Add an array; Python's integers become int64 and its floats float32."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def dimension(self, tensor: str, axis: int) -> str:
        """Return the length of an axis, int64 of shape (1,)."""
        found: str = self.add("Shape", tensor, start=axis, end=axis + 1)
        return found

    def picked(self, values: str, places: str) -> str:
        """Return (N, C, ...) of values (N, M, ...) at places (N, C)."""
        places = self.add("Unsqueeze", places, [2])
        found: str = self.add("GatherND", values, places, batch_dims=1)
        return found


def _decode(draft: _Draft, detector: DetectorSpec, num_classes: int) -> None:
    """Add everything from the detector's outputs to `OUTPUTS`."""
    add = draft.add
    levels = [_level(draft, detector, num_classes, i) for i in range(len(detector.levels))]
    boxes, scores, labels = (add("Concat", *parts, axis=1) for parts in zip(*levels))
    kept = _suppressed(draft, detector, num_classes, boxes, scores, labels)

    # Fewer candidates than detections: fill up with candidates of score 0.
    most = detector.detections_per_image
    batch = draft.dimension(kept, 0)
    filling = {
        "float": add("Expand", np.float32(0), add("Concat", batch, [most], axis=0)),
        "int": add("Expand", np.int64(-1), add("Concat", batch, [most], axis=0)),
        "box": add("Expand", np.float32(0), add("Concat", batch, [most, 4], axis=0)),
    }
    kept = add("Concat", kept, filling["float"], axis=1)
    labels = add("Concat", labels, filling["int"], axis=1)
    boxes = add("Concat", boxes, filling["box"], axis=1)

    scores, places = add("TopK", kept, [most], axis=1, outputs=2)
    labels = draft.picked(labels, places)
    boxes = _clipped(draft, draft.picked(boxes, places))

    # A box that clipping has emptied is no detection, and goes to the end.
    x0, y0, x1, y1 = add("Split", boxes, axis=2, num_outputs=4, outputs=4)
    whole = add("And", add("Greater", x1, x0), add("Greater", y1, y0))
    scores = add("Where", add("Squeeze", whole, [2]), scores, np.float32(0))
    scores, places = add("TopK", scores, [most], axis=1, outputs=2)
    used = add("Greater", scores, np.float32(0))
    add("Identity", scores, outputs="scores")
    add("Where", used, draft.picked(labels, places), np.int64(-1), outputs="labels")
    boxes = draft.picked(boxes, places)
    add("Where", add("Unsqueeze", used, [2]), boxes, np.float32(0), outputs="boxes")


def _level(
    draft: _Draft, detector: DetectorSpec, num_classes: int, index: int
) -> tuple[str, str, str]:
    """Add the candidates of a level: boxes (N, C, 4), scores (N, C), labels (N, C)."""
    add, level = draft.add, detector.levels[index]
    anchors = np.array(detector.cell_anchors[index], dtype=np.float32)
    logits, deltas = (
        _by_anchor(draft, f"{kind}.{level}", len(anchors), numbers)
        for kind, numbers in (("logits", num_classes), ("deltas", 4))
    )
    scores = add("Reshape", add("Sigmoid", logits), [0, -1])
    most = add("Min", draft.dimension(scores, 1), [detector.candidates_per_level])
    scores, places = add("TopK", scores, most, axis=1, outputs=2)
    scores = add(
        "Where",
        add("Greater", scores, np.float32(detector.score_threshold)),
        scores,
        np.float32(0),
    )
    labels = add("Mod", places, num_classes)
    places = add("Div", places, num_classes)  # of the anchor
    cells = add("Div", places, len(anchors))
    width = draft.dimension(f"logits.{level}", 3)
    column, row = add("Mod", cells, width), add("Div", cells, width)
    stride = detector.strides[index]
    points = [add("Unsqueeze", axis, [2]) for axis in (column, row, column, row)]
    corners = add("Cast", add("Mul", add("Concat", *points, axis=2), stride), to=1)
    if detector.anchor_offset:
        corners = add("Add", corners, np.float32(detector.anchor_offset * stride))
    corners = add("Add", corners, add("Gather", anchors, add("Mod", places, len(anchors))))
    boxes = _moved(draft, corners, draft.picked(deltas, places), detector)
    return boxes, scores, labels


def _by_anchor(draft: _Draft, name: str, anchors: int, numbers: int) -> str:
    """Add the form (N, H * W * A, numbers) of an output."""
    add = draft.add
    grid = add("Shape", name, start=2)
    shape = add("Concat", [0, anchors, numbers], grid, axis=0)
    moved = add("Transpose", add("Reshape", name, shape), perm=[0, 3, 4, 1, 2])
    found: str = add(
        "Reshape", moved, add("Concat", draft.dimension(name, 0), [-1, numbers], axis=0)
    )
    return found


def _moved(draft: _Draft, anchors: str, deltas: str, detector: DetectorSpec) -> str:
    """Add the boxes of anchors and deltas, all (N, C, 4)."""
    add = draft.add
    half = np.float32(0.5)
    deltas = add("Div", deltas, list(detector.box_weights))
    start, end = add("Split", anchors, axis=2, num_outputs=2, outputs=2)
    shift, growth = add("Split", deltas, axis=2, num_outputs=2, outputs=2)
    size = add("Sub", end, start)
    centre = add("Add", add("Mul", shift, size), add("Add", start, add("Mul", half, size)))
    growth = add("Exp", add("Min", growth, np.float32(detector.scale_clamp)))
    around = add("Mul", half, add("Mul", growth, size))
    found: str = add("Concat", add("Sub", centre, around), add("Add", centre, around), axis=2)
    return found


def _suppressed(
    draft: _Draft, detector: DetectorSpec, num_classes: int, boxes: str, scores: str, labels: str
) -> str:
    """Add scores (N, C) of candidates, 0 where another one suppresses them."""
    add = draft.add
    own = add("Equal", add("Unsqueeze", labels, [1]), np.arange(num_classes)[:, None])
    by_class = add("Where", own, add("Unsqueeze", scores, [1]), np.float32(0))
    selected = add(
        "NonMaxSuppression",
        boxes,
        by_class,
        [detector.detections_per_image],
        np.array([_between(detector.nms_threshold)]),
        [float(detector.score_threshold)],
    )  # (M, 3): image, class, candidate
    places = add("Gather", selected, [0, 2], axis=1)
    nothing = add("Mul", scores, np.float32(0))
    found: str = add("ScatterND", nothing, places, add("GatherND", scores, places))
    return found


def _between(threshold: float) -> np.float32:
    """Return a float32 beside a threshold, such that its own value falls on the right side.

    Above the threshold a box goes. ONNX Runtime compares by >, but OpenVINO by >=, and overlaps
    like 1/2 do occur. The number returned is one that hardly does.
    """
    nearest = np.float32(threshold)
    goes = float(nearest) > threshold
    return np.nextafter(nearest, np.float32(0 if goes else 2))


def _clipped(draft: _Draft, boxes: str) -> str:
    """Add boxes (N, D, 4) clipped to their images."""
    add = draft.add
    size = add("Cast", add("Unsqueeze", IMAGE_SIZE, [1]), to=1)  # (N, 1, 2): height, width
    limits = add("Gather", size, [1, 0, 1, 0], axis=2)
    found: str = add("Min", add("Max", boxes, np.float32(0)), limits)
    return found
