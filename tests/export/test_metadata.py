import dataclasses
import json
import subprocess
import sys

import pytest

from tests.export.detector_case import make_metadata
from tr_det.export.metadata import CentreCrop, read


def test_a_round_trip_loses_nothing():
    metadata = make_metadata(0.5)
    assert read(metadata.to_json()) == metadata
    assert read(metadata.to_dict()) == metadata
    crop = dataclasses.replace(metadata.input, resize=CentreCrop(256, 224, "bicubic"))
    classifier = dataclasses.replace(metadata, task="classification", detector=None, input=crop)
    assert "detector" not in classifier.to_dict()
    assert read(classifier.to_json()) == classifier
    whole = dataclasses.replace(metadata.input, resize=None)
    assert read(dataclasses.replace(metadata, input=whole).to_json()).input.resize is None


def test_what_may_be_missing_has_a_default():
    values = make_metadata().to_dict()
    for key in ("category_ids", "layers", "versions", "checkpoint", "config"):
        del values[key]
    values["added_later"] = 1
    metadata = read(values)
    assert metadata.category_ids == (1, 2, 3, 4, 5)
    assert metadata.layers == ()


def _keys(values, place=()):
    for key, value in values.items():
        yield (*place, key)
        if key in ("input", "resize", "detector"):
            yield from _keys(value, (*place, key))


OPTIONAL = {"category_ids", "layers", "versions", "checkpoint", "config", "classes"}
REQUIRED = [place for place in _keys(make_metadata().to_dict()) if place[-1] not in OPTIONAL]


@pytest.mark.parametrize("place", REQUIRED, ids=".".join)
def test_a_missing_key_and_a_wrong_type_are_named(place):
    name = ".".join(place)
    values = make_metadata().to_dict()
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = {"a": 1} if place[-1] not in ("input", "resize", "detector") else 3
    with pytest.raises(ValueError, match=rf"metadata.{name}\b.*must be"):
        read(values)
    del inner[place[-1]]
    with pytest.raises(ValueError, match=f"metadata.{name}: is missing"):
        read(values)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("version", 2),
        ("task", "segmentation"),
        ("format", "tflite"),
        ("classes", ["a", 3]),
        ("classes", []),
        ("category_ids", [1, 2]),
        ("input.color", "YUV"),
        ("input.channels", 1),
        ("input.mean", [1.0]),
        ("input.std", [1.0, 0.0, 1.0]),
        ("input.std", [1.0, float("inf"), 1.0]),
        ("input.mean", [1.0, float("nan"), 1.0]),
        ("detector.scale_clamp", float("nan")),
        ("input.scale", float("nan")),
        ("input.divisor", 0),
        ("input.divisor", True),
        ("input.resize.short", -1),
        ("detector.levels", []),
        ("detector.strides", [8]),
        ("detector.cell_anchors", [[[0, 0, 1, 1]], [[0, 0, 1]], [[0, 0, 1, 1]]]),
        ("detector.cell_anchors", [[[0, 0, 1, 1]], [], [[0, 0, 1, 1]]]),
        ("detector.cell_anchors", [[[0, 0, 1, "1"]]] * 3),
        ("detector.cell_anchors", [[0, 0, 1, 1]] * 3),
        ("detector.box_weights", [1.0]),
        ("detector.candidates_per_level", 0),
    ],
)
def test_a_value_that_is_not_allowed_is_named(place, value):
    *outer, key = place.split(".")
    values = make_metadata().to_dict()
    if place == "classes":
        del values["category_ids"]
    inner = values
    for name in outer:
        inner = inner[name]
    inner[key] = value
    with pytest.raises(ValueError, match=rf"metadata\.{place}\b"):
        read(json.dumps(values))


def test_what_would_be_refused_is_not_written():
    metadata = make_metadata()
    other = dataclasses.replace(metadata, input=dataclasses.replace(metadata.input, color="YUV"))
    for write in (other.to_dict, other.to_json):
        with pytest.raises(ValueError, match=r"metadata\.input\.color='YUV'"):
            write()


def test_text_that_is_no_object():
    for text in ("{", "[]", "3"):
        with pytest.raises(ValueError, match="metadata: "):
            read(text)


def test_only_the_standard_library_is_loaded():
    code = "import sys, tr_det.export.metadata; print(*{n.split('.')[0] for n in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"numpy", "torch", "onnx"} & set(loaded.stdout.split())
