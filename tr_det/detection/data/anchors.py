"""How well anchors fit a dataset's boxes, and which would fit better.

A RetinaNet learns a box from the anchors that overlap with it by an IoU of 0.5 or more; anchors of
less than 0.4 are background. A box without a better one has only the best of them, which
Detectron2's matcher leaves it, and is learned poorly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_backbone
from torch import Tensor

from tr_det.core.errors import check, is_number

Levels = tuple[tuple[float, ...], ...]

BASES = 13
"""Candidates for the least size: from the finest stride in steps of a sixth of an octave."""


class InputBoxes(NamedTuple):
    """Boxes of a dataset as the network sees them, in pixels.

    Attributes:
        edges: (N, 4) float32: left, top, right, bottom.
        sizes: (N, 2): width and height of each box's image.
    """

    edges: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class Anchors:
    """Anchors of a detector.

    Attributes:
        sizes: square roots of their areas for each level, pixels.
        ratios: height / width, for each level.
        strides: of the levels, pixels.
        offset: of a cell's point from its corner, in strides.
    """

    sizes: Levels
    ratios: Levels
    strides: tuple[int, ...]
    offset: float = 0.0


def anchors_from(cfg: CfgNode) -> Anchors:
    """Return a config's anchors.

    Raises:
        ConfigError: they are not of the kind that a RetinaNet has.
    """
    node = cfg.MODEL.ANCHOR_GENERATOR
    fits = node.NAME == "DefaultAnchorGenerator"
    check("MODEL.ANCHOR_GENERATOR.NAME", node.NAME, fits, "'DefaultAnchorGenerator'")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.WEIGHTS = ""  # strides need none, and "library" is a download
    with torch.device("meta"):
        shapes = build_backbone(cfg).output_shape()
    features = cfg.MODEL.RETINANET.IN_FEATURES
    strides = tuple(shapes[feature].stride for feature in features)
    return Anchors(
        sizes=_for_each("SIZES", node.SIZES, len(strides)),
        ratios=_for_each("ASPECT_RATIOS", node.ASPECT_RATIOS, len(strides)),
        strides=strides,
        offset=node.OFFSET,
    )


def _for_each(key: str, given: Sequence[Any], levels: int) -> Levels:
    """Return a list for each level, of which Detectron2 takes one for all."""
    values = given if given and isinstance(given[0], Sequence) else [given]
    fits = len(values) in (1, levels) and all(
        isinstance(one, Sequence) and one and all(is_number(value) and value > 0 for value in one)
        for one in values
    )
    allowed = f"a list of numbers above 0, for all {levels} levels or for each"
    check(f"MODEL.ANCHOR_GENERATOR.{key}", given, fits, allowed)
    lists = tuple(tuple(map(float, one)) for one in values)
    return lists * levels if len(lists) == 1 else lists


def boxes_at_input(coco: Mapping[str, Any], cfg: CfgNode) -> InputBoxes:
    """Return the boxes of a COCO file's images at the size of test images.

    Crowds and boxes without area are left out, as in training.

    Raises:
        ValueError: there are no others.
    """
    short, most = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    old, new = {}, {}
    for image in coco["images"]:
        height, width = image["height"], image["width"]
        old[image["id"]] = width, height
        if short:
            height, width = ResizeShortestEdge.get_output_shape(height, width, short, most)
        new[image["id"]] = width, height
    notes = [
        note
        for note in coco["annotations"]
        if not note.get("iscrowd") and min(note["bbox"][2:]) > 0
    ]
    if not notes:
        raise ValueError("the annotations hold no box with an area")
    edges = torch.tensor([note["bbox"] for note in notes], dtype=torch.float32)
    edges[:, 2:] += edges[:, :2]
    before, after = (
        torch.tensor([sizes[note["image_id"]] for note in notes]) for sizes in (old, new)
    )
    return InputBoxes(edges * (after / before).repeat(1, 2), after)


def best_ious(boxes: InputBoxes, anchors: Anchors) -> Tensor:
    """Return (N,) each box's highest IoU with an anchor.

    For a given shape the IoU falls with the distance of the centres along either axis, so the
    anchors at the nearest point of each level's grid are all that are looked at.
    """
    best = torch.zeros(len(boxes.edges))
    low, high = boxes.edges.split(2, 1)
    centre, size = (low + high) / 2, high - low
    for stride, sizes, ratios in zip(anchors.strides, anchors.sizes, anchors.ratios, strict=True):
        last = (boxes.sizes + stride - 1) // stride - 1
        point = (centre / stride - anchors.offset).round().clamp(min=0).minimum(last)
        point = (point + anchors.offset) * stride
        for side in sizes:
            for ratio in ratios:
                half = torch.tensor([side / ratio**0.5, side * ratio**0.5]) / 2
                both = (torch.minimum(high, point + half) - torch.maximum(low, point - half)).clamp(
                    min=0
                )
                common = both.prod(1)
                union = size.prod(1) + side**2 - common
                best = torch.maximum(best, common / union)
    return best


class Coverage(NamedTuple):
    """How well anchors fit boxes.

    Attributes:
        learned: share of boxes with an IoU of at least 0.5.
        not_background: the same of 0.4.
        median: of the highest IoU of each box.
    """

    learned: float
    not_background: float
    median: float


def coverage(ious: Tensor) -> Coverage:
    """Sum up what `best_ious` returns."""
    learned, most = ((ious >= limit).double().mean().item() for limit in (0.5, 0.4))
    return Coverage(learned, most, ious.median().item())


def propose(boxes: InputBoxes, current: Anchors) -> Anchors:
    """Return as many anchors as now that fit better, or the present ones.

    Levels are octaves apart, and sizes within a level divide its octave evenly. Their least size is
    searched for; aspect ratios are quantiles of the boxes', or as now. The most boxes with an IoU
    of at least 0.5 win, within a percent the highest mean.
    """
    width, height = (boxes.edges[:, 2:] - boxes.edges[:, :2]).unbind(1)
    count = len(current.ratios[0])
    order = (height / width).sort().values
    ratios = tuple(
        max(0.01, round(order[int((part + 0.5) / count * len(order))].item(), 2))
        for part in range(count)
    )
    fitted = replace(current, ratios=(ratios,) * len(current.strides))
    tried = [current, *_octaves(current), *_octaves(fitted)]

    def merit(anchors: Anchors) -> tuple[float, float]:
        ious = best_ious(boxes, anchors)
        return round(coverage(ious).learned, 2), ious.mean().item()

    return max(tried, key=merit)


def _octaves(anchors: Anchors) -> Iterator[Anchors]:
    """Yield anchors whose sizes are in octaves, for all candidates of the least one."""
    count = len(anchors.sizes[0])
    for sixth in range(BASES):
        least = anchors.strides[0] * 2 ** (sixth / 6)
        yield replace(
            anchors,
            sizes=tuple(
                tuple(
                    round(least * stride / anchors.strides[0] * 2 ** (part / count), 1)
                    for part in range(count)
                )
                for stride in anchors.strides
            ),
        )


def pairs(anchors: Anchors) -> list[str]:
    """Return the keys that set anchors, as KEY, VALUE, ... of a command line."""

    def text(levels: Levels) -> str:
        kept = levels[:1] if len(set(levels)) == 1 else levels
        return str([[_short(value) for value in level] for level in kept])

    return [
        *("MODEL.ANCHOR_GENERATOR.SIZES", text(anchors.sizes)),
        *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", text(anchors.ratios)),
    ]


def _short(value: float) -> float | int:
    return int(value) if math.isclose(value, int(value)) else value
