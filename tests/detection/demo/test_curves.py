"""The picture of TR curves: its size, what is drawn where, odd input, failures."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from tests.detection.demo.pictures import near, pixels
from tr_det.detection.demo.curves import draw_tr
from tr_det.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[3]
TARGET, RUNNING, TALR = (200, 69, 46), (31, 95, 168), (43, 138, 87)


def tr_data(points: int = 20, layers: int = 3, **changes) -> dict:
    steps = np.linspace(0, 1, points)
    iteration = list(range(19, 19 + 20 * points, 20))
    target = list(0.01 * (1 + np.cos(np.pi * steps)) / 2)
    data = {
        "iteration": iteration,
        "target": target,
        "running": [0.5 * t + 0.001 for t in target],
        "talr": list(0.02 - 0.01 * steps),
        "layers": {
            f"conv.{i}": {
                "iteration": iteration,
                "running": [(0.3 + 0.2 * i) * t for t in target],
                "talr": [0.005 * (i + 1)] * points,
            }
            for i in range(layers)
        },
    }
    return data | changes


def test_tr_picture_has_its_size_and_curves_in_their_panels(tmp_path):
    draw_tr(tmp_path / "tr.png", tr_data(), "TR of a test")
    picture = pixels(tmp_path / "tr.png")
    assert picture.shape == (700, 1000, 3)
    upper, lower = picture[:365], picture[365:]
    assert near(upper, TARGET).sum() > 300
    assert near(upper, RUNNING).sum() > 600
    assert near(lower, TALR).sum() > 600
    assert not near(lower, TARGET).any()
    assert not near(upper, TALR).any()
    assert os.listdir(tmp_path) == ["tr.png"]


def test_tr_curves_follow_the_numbers(tmp_path):
    """A target that falls is drawn high on the left and low on the right."""
    draw_tr(tmp_path / "tr.png", tr_data(), "")
    red = near(pixels(tmp_path / "tr.png")[:365], TARGET)
    heights = [
        np.nonzero(red[:, columns])[0].mean() for columns in (slice(100, 300), slice(650, 990))
    ]
    legend_free = np.nonzero(red[130:, 650:])[0].mean() + 130
    assert heights[0] < 150 < 250 < legend_free


def test_layers_are_faint_lines_of_their_own(tmp_path):
    draw_tr(tmp_path / "with.png", tr_data(layers=30), "")
    draw_tr(tmp_path / "without.png", tr_data(layers=0), "")
    inked = [(pixels(tmp_path / name) < 250).any(-1).sum() for name in ("with.png", "without.png")]
    assert inked[0] > inked[1] + 3000


def test_one_wild_layer_does_not_flatten_the_mean(tmp_path):
    calm = tr_data(layers=3)
    wild = tr_data(layers=3)
    wild["layers"]["conv.0"]["talr"] = [50.0] * 20
    tops = []
    for data in (calm, wild):
        draw_tr(tmp_path / "tr.png", data, "")
        line = near(pixels(tmp_path / "tr.png")[365:640, 100:300], TALR, 4)
        tops.append(np.nonzero(line)[0].min())
    assert tops[0] < tops[1] < 240  # lower than without the wild layer, but well above the axis


def test_learning_rate_reference(tmp_path):
    def dots(**arguments):
        draw_tr(tmp_path / "tr.png", tr_data(), "", **arguments)
        return near(pixels(tmp_path / "tr.png")[390:640, 130:700], (34, 34, 34), 40)

    assert dots().sum() == 0
    level = dots(learning_rate=0.01)
    assert level.sum() > 100
    assert np.ptp(np.nonzero(level)[0]) < 8
    curve = dots(learning_rate=[(19, 0.01), (200, 0.01), (201, 0.001), (399, 0.001)])
    assert curve.sum() > 100
    assert np.ptp(np.nonzero(curve)[0]) > 50


@pytest.mark.parametrize("missing", [[], None, [None] * 20, [math.nan] * 20])
def test_plain_sgd_has_no_target(tmp_path, missing):
    draw_tr(tmp_path / "tr.png", tr_data(target=missing), "SGD")
    picture = pixels(tmp_path / "tr.png")
    assert not near(picture, TARGET).any()
    assert near(picture, RUNNING).sum() > 600


def test_series_without_talr(tmp_path):
    draw_tr(tmp_path / "tr.png", tr_data(layers=0, talr=[]), "SGD")
    picture = pixels(tmp_path / "tr.png")
    assert not near(picture, TALR).any()
    assert (picture[450:600, 300:750] < 160).any()  # says so in the middle of the panel


def test_one_point_is_visible(tmp_path):
    draw_tr(tmp_path / "tr.png", tr_data(points=1), "one point")
    middle = pixels(tmp_path / "tr.png")[:, 450:650]
    assert all(near(middle, colour).sum() > 40 for colour in (TARGET, RUNNING, TALR))


@pytest.mark.parametrize(
    "series",
    [
        {},
        {"iteration": [], "target": [], "running": [], "talr": [], "layers": {}},
        {"iteration": [1], "running": [math.nan], "layers": {"a": {"running": [None]}}},
    ],
)
def test_empty_series_say_so(tmp_path, series):
    draw_tr(tmp_path / "tr.png", series, "nothing", learning_rate=0.1)
    picture = pixels(tmp_path / "tr.png")
    assert picture.shape == (700, 1000, 3)
    assert (picture[300:450, 400:600] < 160).any()
    assert not any(near(picture, colour).any() for colour in (TARGET, RUNNING, TALR))


def test_series_from_json_draw_the_same_picture(tmp_path):
    data = tr_data()
    data["running"][3] = math.nan
    data["layers"]["conv.1"]["talr"][5] = math.nan
    write_json(tmp_path / "tr.json", data)
    draw_tr(tmp_path / "a.png", data, "same")
    draw_tr(tmp_path / "b.png", json.loads((tmp_path / "tr.json").read_text()), "same")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.filterwarnings("error")
def test_odd_titles_and_zero_curves_draw_without_a_warning(tmp_path):
    zero = tr_data(points=4, layers=1, target=[0.0] * 4, running=[0.0] * 4, talr=[0.0] * 4)
    zero["layers"]["conv.0"] = {"running": [0.0] * 4, "talr": [0.0] * 4}
    draw_tr(tmp_path / "tr.png", zero, r"cost $1_{ of $2 \frac")
    assert near(pixels(tmp_path / "tr.png"), RUNNING).any()


def test_a_failing_disk_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("tr_det.runtime.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_tr(path, tr_data(), "x")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["picture.png"]
