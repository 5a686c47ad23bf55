"""The demo's pictures show the numbers that they are given."""

import math

import numpy as np
import pytest
from PIL import Image

from tr_det.detection.demo import pictures
from tr_det.detection.demo.pictures import draw_detections, draw_tr

LAYERS = {"a": {"running": [0.01, 0.02], "talr": [5, 50]}, "b": {"running": [0, 0], "talr": [1, 1]}}
SERIES = {"iteration": [19, 39], "target": [math.nan, 0.01], "running": [0.02, 0.01]}
SERIES |= {"talr": [1.0, 2.0], "layers": LAYERS}
NOTHING = {"iteration": [], "target": [], "running": [], "talr": [], "layers": {}}


@pytest.fixture
def drawn(monkeypatch):
    """Return a list of the figures that are saved."""
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    return figures


def curves(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_curves_of_transition_rate_and_talr(drawn, tmp_path):
    draw_tr(tmp_path / "tr.png", SERIES, "title", [(19, 0.1), (39, 0.2)])
    rate, talr = drawn[0].axes
    assert curves(rate)["running TR, mean of the layers"] == [[19, 2.0], [39, 1.0]]
    np.testing.assert_equal(curves(rate)["target TR"], [[19, math.nan], [39, 1.0]])
    assert curves(talr)["TALR, mean of the layers"] == [[19, 1.0], [39, 2.0]]
    assert curves(talr)["plain learning rate"] == [[19, 0.1], [39, 0.2]]
    assert [len(axes.get_lines()) for axes in (rate, talr)] == [4, 4]
    assert 2 < talr.get_ylim()[1] < 10  # one wild layer does not flatten the mean


def test_detections_are_boxes_in_their_columns(drawn, tmp_path):
    image = np.full((64, 96, 3), 60, np.uint8)
    found = [([4, 5, 20, 30], 1, 0.9), ([0, 0, 9, 9], 2, 0.39)]
    rows = [(image, [[([1, 2, 3, 4], 0, None)], found, []])]
    draw_detections(tmp_path / "d.png", rows, "0123", ("truth", "model", "none"))
    truth, model, none = drawn[0].axes
    assert [axes.get_title() for axes in drawn[0].axes] == ["truth", "model", "none"]
    assert [patch.get_bbox().bounds for patch in truth.patches] == [(1, 2, 3, 4)]
    assert [patch.get_bbox().bounds for patch in model.patches] == [(4, 5, 20, 30)]
    assert [text.get_text() for text in (*truth.texts, *model.texts)] == ["0", "1 0.90"]
    assert not none.patches
    assert truth.patches[0].get_edgecolor() != model.patches[0].get_edgecolor()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("series", [SERIES, NOTHING])
def test_a_picture_replaces_the_old_one(tmp_path, series):
    path = tmp_path / "tr.png"
    path.write_bytes(b"old")
    draw_tr(path, series, "title")
    with Image.open(path) as picture:
        assert picture.size == (1000, 700)
    assert list(tmp_path.iterdir()) == [path]
