"""What an exported file says about itself: one JSON object, read into typed values.

    format, version   of the file; version 1 is the only one so far
    task              "detection", "classification" or "features" (outputs without a meaning)
    versions          of tr_det, torch, Python and onnx that wrote the file
    checkpoint        file and sha256 of what was exported
    config            text of the run's config
    input             how an image becomes the network's input, see `InputSpec`
    classes           names by label
    category_ids      of the dataset by label; 1, 2, ... where they are missing, as COCO counts
    detector          how its outputs become boxes, see `DetectorSpec`; detection only
    layers            name, weight_bits and input_bits of each quantized layer

Only the standard library is needed here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FORMATS = ("qcdq", "integer", "packed", "torch")
TASKS = ("detection", "classification", "features")
COLORS = {"BGR": 3, "RGB": 3, "L": 1}
"""Order of the channels -> their number."""
INTERPOLATIONS = ("bilinear", "bicubic")
"""How a classifier's images are scaled; Pillow's and torchvision's names."""
METADATA_KEY = "tr_det"
"""Under which a file of any format has this JSON."""
VERSION = 1


@dataclass(frozen=True)
class ShortestEdge:
    """Detectron2's resizing for tests.

    Attributes:
        short: length that the shorter side gets, px; 0: not resized.
        long: the most that the longer side may have, px.
    """

    short: int
    long: int


@dataclass(frozen=True)
class CentreCrop:
    """A classifier's resizing.

    Attributes:
        size: length that the shorter side gets, px.
        crop: side of the square that is cut from the middle, px.
        interpolation: one of `INTERPOLATIONS`.
    """

    size: int
    crop: int
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes the input: pixel p of the resized image is (p * scale - mean) / std.

    Attributes:
        channels: of the input, in the order of ``color``.
        color: "BGR", "RGB" or "L" (grey).
        scale: of pixels, which are 0 to 255.
        mean: of each channel, after ``scale``.
        std: likewise.
        divisor: height and width are padded to multiples of it.
        resize: None: the image is taken as it is.
    """

    channels: int
    color: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    divisor: int
    resize: ShortestEdge | CentreCrop | None


@dataclass(frozen=True)
class DetectorSpec:
    """How the outputs of a RetinaNet become boxes.

    Attributes:
        levels: names of the feature maps; outputs are "logits." and "deltas." with each of them.
        strides: px, one for each level.
        cell_anchors: for each level the anchors (x0, y0, x1, y1) around a cell's point, px.
        anchor_offset: of a cell's point from its corner, in strides.
        box_weights: divisors of the four deltas.
        scale_clamp: largest delta of width and height, a logarithm.
        score_threshold: detections have higher scores.
        candidates_per_level: the most that go on from a level.
        nms_threshold: intersection over union above which the lower of two boxes of a class goes.
        detections_per_image: the most that are returned.
    """

    levels: tuple[str, ...]
    strides: tuple[int, ...]
    cell_anchors: tuple[tuple[tuple[float, ...], ...], ...]
    anchor_offset: float
    box_weights: tuple[float, ...]
    scale_clamp: float
    score_threshold: float
    candidates_per_level: int
    nms_threshold: float
    detections_per_image: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the network's outputs, in their order."""
        kinds = ("logits", "deltas")
        return tuple(f"{kind}.{level}" for kind in kinds for level in self.levels)


@dataclass(frozen=True)
class Metadata:
    """The whole object; the module names the fields."""

    format: str
    task: str
    input: InputSpec
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    detector: DetectorSpec | None = None
    layers: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    checkpoint: dict[str, str] = field(default_factory=dict)
    config: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        if not self.category_ids:
            object.__setattr__(self, "category_ids", tuple(range(1, len(self.classes) + 1)))

    def to_dict(self) -> dict[str, Any]:
        """Return the object as JSON holds it, without ``detector`` where there is none.

        Raises:
            ValueError: what `read` would refuse; so no file gets it.
        """
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists
        if self.detector is None:
            del values["detector"]
        read(values)
        return values

    def to_json(self) -> str:
        """Return the JSON text."""
        return json.dumps(self.to_dict(), allow_nan=False)


def check_outputs(shapes: Mapping[str, tuple[int, ...]], metadata: Metadata) -> None:
    """Raise ValueError unless a network's outputs are of the classes that its metadata name.

    Args:
        shapes: of the outputs, by name.
        metadata: of a detector or a classifier; the latter may name no classes.
    """
    names, spec = len(metadata.classes), metadata.detector
    wanted = {"logits": names}
    if spec is not None:
        wanted = {}
        for level, anchors in zip(spec.levels, map(len, spec.cell_anchors)):
            wanted[f"logits.{level}"] = anchors * names
            wanted[f"deltas.{level}"] = anchors * 4
    for output, channels in wanted.items():
        if output not in shapes:
            raise ValueError(f"the network has no output {output!r}; only {list(shapes)}")
        shape = shapes[output]
        if channels and (len(shape) < 2 or shape[1] != channels):
            raise ValueError(
                f"metadata.classes: lists {names}, so output {output!r} must have {channels} "
                f"channels; it has the shape {list(shape)}"
            )


def read(source: str | Mapping[str, Any]) -> Metadata:
    """Return the metadata of a JSON text or of the object that it holds.

    Keys that are not known are passed over: a later version of the package may have added them.

    Raises:
        ValueError: no JSON, a missing key, or a value that is not allowed; the key is named.
    """
    if isinstance(source, str):
        try:
            source = json.loads(source)
        except ValueError as error:
            raise ValueError(f"metadata: is not JSON ({error})") from None
    top = _Values(source, "metadata")
    version = top.get("version", int)
    top.check("version", version == VERSION, f"{VERSION}; a newer tr_det wrote the file")
    task = top.get("task", str)
    top.check("task", task in TASKS, f"one of {list(TASKS)}")
    form = top.get("format", str)
    top.check("format", form in FORMATS, f"one of {list(FORMATS)}")
    classes = top.tuple("classes", str, ())
    ids = top.tuple("category_ids", int, ())
    top.check("category_ids", len(ids) in (0, len(classes)), f"of {len(classes)} classes")
    top.check("classes", bool(classes) or task != "detection", "one name or more")
    return Metadata(
        format=form,
        task=task,
        input=_input(top.inner("input")),
        classes=classes,
        category_ids=ids,
        detector=_detector(top.inner("detector")) if task == "detection" else None,
        layers=top.tuple("layers", dict, ()),
        versions=top.get("versions", dict, {}),
        checkpoint=top.get("checkpoint", dict, {}),
        config=top.get("config", str, ""),
        version=version,
    )


def _input(values: _Values) -> InputSpec:
    color = values.get("color", str)
    values.check("color", color in COLORS, f"one of {list(COLORS)}")
    spec = InputSpec(
        channels=values.get("channels", int),
        color=color,
        scale=values.get("scale", float),
        mean=values.tuple("mean", float),
        std=values.tuple("std", float),
        divisor=values.get("divisor", int),
        resize=_resize(values),
    )
    channels = COLORS[color]
    values.check("channels", spec.channels == channels, f"{channels} for {color}")
    for key in ("mean", "std"):
        values.check(key, len(getattr(spec, key)) == channels, f"{channels} numbers")
    values.check("std", all(std > 0 for std in spec.std), "positive")
    values.check("scale", spec.scale > 0, "positive")
    values.check("divisor", spec.divisor >= 1, "at least 1")
    return spec


def _resize(values: _Values) -> ShortestEdge | CentreCrop | None:
    if values.get("resize", object) is None:
        return None
    values = values.inner("resize")
    if "size" not in values.of:
        edges = ShortestEdge(values.get("short", int), values.get("long", int))
        values.check("short", edges.short >= 0, "at least 0")
        values.check("long", edges.long >= 1 or edges.short == 0, "at least 1")
        return edges
    kind = values.get("interpolation", str, "bilinear")
    values.check("interpolation", kind in INTERPOLATIONS, f"one of {list(INTERPOLATIONS)}")
    cut = CentreCrop(values.get("size", int), values.get("crop", int), kind)
    values.check("crop", 1 <= cut.crop <= cut.size, f"from 1 to size={cut.size}")
    return cut


def _detector(values: _Values) -> DetectorSpec:
    anchors = values.items("cell_anchors")
    by_level = [anchors.items(level) for level in anchors.of]
    spec = DetectorSpec(
        levels=values.tuple("levels", str),
        strides=values.tuple("strides", int),
        cell_anchors=tuple(tuple(level.tuple(i, float) for i in level.of) for level in by_level),
        anchor_offset=values.get("anchor_offset", float),
        box_weights=values.tuple("box_weights", float),
        scale_clamp=values.get("scale_clamp", float),
        score_threshold=values.get("score_threshold", float),
        candidates_per_level=values.get("candidates_per_level", int),
        nms_threshold=values.get("nms_threshold", float),
        detections_per_image=values.get("detections_per_image", int),
    )
    count = len(spec.levels)
    values.check("levels", count > 0, "one level or more")
    for key in ("strides", "cell_anchors"):
        values.check(key, len(getattr(spec, key)) == count, f"of {count} levels")
    boxes = [box for level in spec.cell_anchors for box in level]
    fits = all(spec.cell_anchors) and all(len(box) == 4 for box in boxes)
    values.check("cell_anchors", fits, "boxes of 4 numbers for each level")
    values.check("box_weights", len(spec.box_weights) == 4, "4 numbers")
    values.check("score_threshold", spec.score_threshold >= 0, "at least 0")
    for key in ("candidates_per_level", "detections_per_image"):
        values.check(key, getattr(spec, key) >= 1, "at least 1")
    return spec


_REQUIRED = object()


class _Values:
    """An object of the JSON, which knows its place for error messages."""

    def __init__(self, of: Any, place: str) -> None:
        if not isinstance(of, Mapping):
            raise ValueError(f"{place}: must be an object; got {type(of).__name__}")
        self.of, self.place = of, place

    def get(self, key: Any, kind: type, default: Any = _REQUIRED) -> Any:
        """Return a value of a type; an integer will do where a float is wanted."""
        value = self.of.get(key, default)
        if value is _REQUIRED:
            raise ValueError(f"{self.place}.{key}: is missing")
        if kind is float and type(value) is int:
            return float(value)
        if isinstance(value, float):
            self.check(key, math.isfinite(value), "finite")
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        self.check(key, fits, f"of type {kind.__name__}")
        return value

    def items(self, key: Any, default: Any = _REQUIRED) -> _Values:
        """Return a list's values by their positions."""
        values = self.get(key, object, default)
        self.check(key, isinstance(values, (list, tuple)), "a list")
        return _Values(dict(enumerate(values)), f"{self.place}.{key}")

    def tuple(self, key: Any, kind: type, default: Any = _REQUIRED) -> Any:
        """Return a list's values, all of a type."""
        items = self.items(key, default)
        return tuple(items.get(position, kind) for position in items.of)

    def inner(self, key: str) -> _Values:
        """Return an inner object."""
        return _Values(self.get(key, object), f"{self.place}.{key}")

    def check(self, key: Any, holds: bool, allowed: str) -> None:
        """Raise ValueError unless ``holds``."""
        if not holds:
            raise ValueError(f"{self.place}.{key}={self.of.get(key)!r}: must be {allowed}")
