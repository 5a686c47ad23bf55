"""The demo's pictures: sizes, what is drawn where, odd input, old pictures survive failures."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tr_det.demo import figures
from tr_det.demo.figures import draw_detections, draw_tr
from tr_det.demo.report import write_json

ROOT = Path(__file__).resolve().parents[2]
TARGET, RUNNING, TALR = (200, 69, 46), (31, 95, 168), (43, 138, 87)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> np.ndarray:
    """Where the picture has this colour."""
    return (np.abs(picture - np.array(colour)) <= tolerance).all(axis=-1)


def rgb(hexadecimal: str) -> tuple[int, int, int]:
    return tuple(int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))


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


# ------------------------------------------------------------------------------------------ draw_tr


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


# ---------------------------------------------------------------------------------- draw_detections

NAMES = [str(digit) for digit in range(10)]
GREY = 60


def grey(height: int = 128, width: int = 128) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def columns_of(picture: np.ndarray) -> list[tuple[int, int]]:
    """Left and right edge of each grey image in the first image row."""
    row = near(picture[60 : 60 + 40], (GREY,) * 3, 0).any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(int), [0]))))
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_boxes_are_drawn_in_their_column_place_and_colour(tmp_path):
    box = (32, 40, 96, 104)
    rows = [(grey(), [[(box, 1, None)], [(np.array(box), 2, 0.9)], []])]
    draw_detections(tmp_path / "det.png", rows, NAMES)
    picture = pixels(tmp_path / "det.png")
    one, two = rgb(figures._colour(1)), rgb(figures._colour(2))

    cells = columns_of(picture)
    assert len(cells) == 3
    assert {right - left for left, right in cells} == {384}  # 128 pixels, enlarged three times
    first, second, third = (picture[:, left:right] for left, right in cells)
    assert near(first, one, 2).any()
    assert not near(first, two, 2).any()
    assert near(second, two, 2).any()
    assert not near(second, one, 2).any()
    assert (third[36:420] == GREY).all()

    # The outline lies around the box: scaled by three, under the heading of 36 pixels.
    outline = near(first, one, 2)
    columns = np.flatnonzero(outline[36 + 200])
    assert columns.min() == 96 - 2
    assert columns.max() == 288 + 2
    rows_ = np.flatnonzero(outline[:, 250])
    assert rows_.min() == 36 + 120 - 2
    assert rows_.max() == 36 + 312 + 2
    assert not outline[36 + 122 : 36 + 311, 98:287].any()  # and leaves the object alone


def test_a_score_makes_the_label_longer(tmp_path):
    box = (20, 60, 110, 120)
    rows = [(grey(), [[(box, 3, None)], [(box, 3, 0.87)]])]
    draw_detections(tmp_path / "det.png", rows, NAMES, columns=("truth", "model"))
    picture = pixels(tmp_path / "det.png")
    colour = rgb(figures._colour(3))
    widths = []
    for left, right in columns_of(picture):
        label = near(picture[36 : 36 + 178, left:right], colour, 2)
        widths.append(np.ptp(np.nonzero(label)[1]))
    assert 8 < widths[0] < 25
    assert widths[1] > widths[0] + 20


def test_only_detections_at_the_threshold_and_finite_boxes(tmp_path):
    box = (32, 40, 96, 104)
    hidden = [(box, 4, 0.39), (box, 4, math.nan), ((0, 0, math.nan, 9), 4, 0.9)]
    rows = [(grey(), [[(box, 1, None)], hidden, [(box, 5, np.float32(0.4001))]])]
    draw_detections(tmp_path / "det.png", rows, NAMES, score_threshold=0.4)
    picture = pixels(tmp_path / "det.png")
    assert not near(picture, rgb(figures._colour(4)), 2).any()
    assert near(picture, rgb(figures._colour(5)), 2).any()
    draw_detections(tmp_path / "det.png", rows, NAMES, score_threshold=0.3)
    assert near(pixels(tmp_path / "det.png"), rgb(figures._colour(4)), 2).any()


def test_labels_of_close_boxes_do_not_cover_each_other():
    from PIL import ImageDraw

    pen = ImageDraw.Draw(Image.new("RGB", (384, 384)))
    taken: list = []
    for shift in range(5):
        box = (150 + shift, 150 + shift, 240 + shift, 240 + shift)
        figures._draw_label(pen, (384, 384), box, "7 0.93", "#ff5c57", taken)
    assert len(taken) == 5
    pairs = [(a, b) for i, a in enumerate(taken) for b in taken[:i]]
    assert all(figures._overlap(a, b) == 0 for a, b in pairs)


def test_colours_differ_between_classes_and_stay_the_same():
    colours = [figures._colour(i) for i in range(80)]
    assert len(set(colours)) == 80
    assert colours == [figures._colour(i) for i in range(80)]


def test_images_of_several_sizes_share_the_grid(tmp_path):
    rows = [(grey(128, 128), [[], []]), (grey(480, 640), [[], []]), (grey(640, 320), [[], []])]
    draw_detections(tmp_path / "det.png", rows, NAMES, columns=("a", "b"))
    picture = pixels(tmp_path / "det.png")
    runs = [near(picture[y], (GREY,) * 3, 0).sum() // 2 for y in (200, 500, 850)]
    assert runs == [384, 360, 180]


def test_odd_boxes_and_classes_are_drawn(tmp_path):
    odd = [
        ((-50, -50, 500, 500), 99, 0.9),  # beyond the image, class without a name
        ((90, 90, 20, 20), 0, 0.8),  # corners swapped
        ((64, 64, 64, 64), 2, 0.8),  # empty
        ((500, 500, 600, 600), 3, 0.8),  # outside
    ]
    draw_detections(tmp_path / "det.png", [(grey(), [odd])], NAMES, columns=("odd",))
    assert near(pixels(tmp_path / "det.png"), rgb(figures._colour(0)), 2).any()


def test_no_rows_say_so(tmp_path):
    draw_detections(tmp_path / "det.png", [], NAMES)
    picture = pixels(tmp_path / "det.png")
    centre = picture.shape[1] // 2
    assert (picture[60:200, centre - 60 : centre + 60] < 160).any()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((grey().astype(np.float32), [[], [], []]), "row 0: the image is float32"),
        ((grey()[..., 0], [[], [], []]), "not uint8"),
        ((grey(), [[], []]), "row 0 has 2 lists of boxes for the 3 columns"),
    ],
)
def test_bad_rows_are_named_and_keep_the_old_picture(tmp_path, row, message):
    path = tmp_path / "det.png"
    draw_detections(path, [], NAMES)
    old = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        draw_detections(path, [row], NAMES)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["det.png"]


# --------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize(
    "draw",
    [lambda path: draw_tr(path, tr_data(), "x"), lambda path: draw_detections(path, [], NAMES)],
    ids=["tr", "detections"],
)
def test_a_failing_disk_keeps_the_old_picture(tmp_path, monkeypatch, draw):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("tr_det.demo.report.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["picture.png"]


def test_imports_are_lean():
    """Neither module pulls in torch or Detectron2, and figures leaves matplotlib for later."""
    code = (
        "import sys; before = set(sys.modules); import tr_det.demo.report, tr_det.demo.figures; "
        "print([m for m in ('torch', 'detectron2', 'matplotlib', 'PIL') "
        "if m in set(sys.modules) - before])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
