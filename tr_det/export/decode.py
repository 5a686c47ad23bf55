"""From a detector's outputs to boxes, as Detectron2's RetinaNet does it; numpy only.

For each level: scores, threshold, the best candidates and their boxes. Then, over all levels,
non-maximum suppression within each class, the best detections, and their boxes in the original
image.

One thing is stricter here. For few candidates torchvision suppresses all classes at once, with the
boxes of each class moved aside by the largest coordinate. Boxes that leave the image at opposite
corners can then meet although their classes differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tr_det.export.metadata import DetectorSpec


@dataclass(frozen=True)
class Boxes:
    """Detections of an image, the best first.

    Attributes:
        boxes: (M, 4) float32 x0, y0, x1, y1 in px.
        scores: (M,) float32.
        labels: (M,) int64.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.scores)

    def take(self, which: Any) -> Boxes:
        """Return the detections of a NumPy index."""
        return Boxes(self.boxes[which], self.scores[which], self.labels[which])


def detect(
    outputs: Mapping[str, np.ndarray],
    detector: DetectorSpec,
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    index: int = 0,
) -> Boxes:
    """Return the detections of one image.

    Args:
        outputs: of the network for a batch of images: "logits.LEVEL" (N, A * K, H, W) with
            channel ``anchor * K + class``, and "deltas.LEVEL" (N, A * 4, H, W), float32.
        detector: from the metadata.
        image_size: height and width of the resized image, without padding.
        original_size: height and width of the image in which boxes are wanted.
        index: of the image in the batch.

    Raises:
        ValueError: an output is missing or does not fit the anchors.
    """
    # Infinite numbers are let through: their boxes cover the image or, as empty ones, are left out.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        levels = range(len(detector.levels))
        found = joined([_candidates(outputs, detector, level, index) for level in levels])
        found = suppressed(found, detector.nms_threshold, detector.detections_per_image)
        return rescaled(found, image_size, original_size)


def joined(parts: list[Boxes]) -> Boxes:
    """Return the detections of all parts, in their order."""
    return Boxes(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def suppressed(found: Boxes, threshold: float, most: int) -> Boxes:
    """Return what non-maximum suppression within each class leaves, the best first.

    Args:
        found: in any order; of equal scores the earlier counts as the better.
        threshold: intersection over union above which the lower of two boxes goes.
        most: number of detections at which to stop.
    """
    found = found.take(np.argsort(-found.scores, kind="stable"))
    x0, y0, x1, y1 = found.boxes.T
    areas = (x1 - x0) * (y1 - y0)
    gone = np.zeros(len(found), dtype=bool)
    kept: list[int] = []
    for best in range(len(found)):
        if gone[best]:
            continue
        kept.append(best)
        if len(kept) == most:
            break
        width = np.minimum(x1[best], x1) - np.maximum(x0[best], x0)
        height = np.minimum(y1[best], y1) - np.maximum(y0[best], y0)
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        overlap = shared / (areas[best] + areas - shared)
        gone |= (overlap.astype(np.float64) > threshold) & (found.labels == found.labels[best])
    return found.take(kept)


def rescaled(found: Boxes, image_size: tuple[int, int], original_size: tuple[int, int]) -> Boxes:
    """Return boxes of a resized image in the original one, clipped to it; empty ones are left out.

    Args:
        found: in px of the resized image.
        image_size: height and width of the resized image.
        original_size: height and width of the original image.
    """
    height, width = original_size
    scales = np.array([width / image_size[1], height / image_size[0]] * 2, dtype=np.float32)
    boxes = np.clip(found.boxes * scales, 0, np.array([width, height] * 2, dtype=np.float32))
    x0, y0, x1, y1 = boxes.T
    return Boxes(boxes, found.scores, found.labels).take((x1 > x0) & (y1 > y0))


def _candidates(
    outputs: Mapping[str, np.ndarray], detector: DetectorSpec, level: int, index: int
) -> Boxes:
    """Return the best of a level, in px of the resized image, the best first."""
    anchors = np.array(detector.cell_anchors[level], dtype=np.float32)  # (A, 4)
    logits = _by_anchor(outputs, f"logits.{detector.levels[level]}", index, len(anchors))
    deltas = _by_anchor(outputs, f"deltas.{detector.levels[level]}", index, len(anchors))
    if logits.shape[:3] != deltas.shape[:3] or deltas.shape[3] != 4:
        shapes = f"logits {logits.shape} and deltas {deltas.shape} of height, width, anchors, _"
        raise ValueError(f"outputs of {detector.levels[level]}: {shapes} do not fit")
    scores = 1 / (1 + np.exp(-logits))
    places = np.flatnonzero(scores > np.float32(detector.score_threshold))
    scores = scores.reshape(-1)[places]
    best = np.argsort(-scores, kind="stable")[: detector.candidates_per_level]
    row, column, anchor, label = np.unravel_index(places[best], logits.shape)
    stride = detector.strides[level]
    points = np.stack([column, row, column, row], axis=1) * stride
    points = (points + detector.anchor_offset * stride).astype(np.float32)
    boxes = _moved(points + anchors[anchor], deltas[row, column, anchor], detector)
    return Boxes(boxes, scores[best], label.astype(np.int64))


def _by_anchor(
    outputs: Mapping[str, np.ndarray], name: str, index: int, anchors: int
) -> np.ndarray:
    """Return an output of one image as (H, W, A, K)."""
    if name not in outputs:
        raise ValueError(f"{name}: is not among the outputs {list(outputs)}")
    output = outputs[name][index]
    channels, height, width = output.shape
    if channels % anchors:
        raise ValueError(f"{name}: {channels} channels, but {anchors} anchors")
    return output.reshape(anchors, -1, height, width).transpose(2, 3, 0, 1)


def _moved(anchors: np.ndarray, deltas: np.ndarray, detector: DetectorSpec) -> np.ndarray:
    """Return the boxes of anchors and deltas, all (M, 4) float32."""
    x0, y0, x1, y1 = anchors.T
    width, height = x1 - x0, y1 - y0
    dx, dy, dw, dh = (deltas / np.array(detector.box_weights, dtype=np.float32)).T
    half, limit = np.float32(0.5), np.float32(detector.scale_clamp)
    x = dx * width + (x0 + half * width)
    y = dy * height + (y0 + half * height)
    across = half * (np.exp(np.minimum(dw, limit)) * width)
    down = half * (np.exp(np.minimum(dh, limit)) * height)
    return np.stack([x - across, y - down, x + across, y + down], axis=1)
