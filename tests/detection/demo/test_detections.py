"""The picture of detections: what is drawn where, odd input, failures."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from PIL import Image

from tests.detection.demo.pictures import near, pixels, rgb
from tr_det.detection.demo import detections
from tr_det.detection.demo.detections import draw_detections

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
    one, two = rgb(detections._colour(1)), rgb(detections._colour(2))

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
    colour = rgb(detections._colour(3))
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
    assert not near(picture, rgb(detections._colour(4)), 2).any()
    assert near(picture, rgb(detections._colour(5)), 2).any()
    draw_detections(tmp_path / "det.png", rows, NAMES, score_threshold=0.3)
    assert near(pixels(tmp_path / "det.png"), rgb(detections._colour(4)), 2).any()


def test_labels_of_close_boxes_do_not_cover_each_other():
    from PIL import ImageDraw

    pen = ImageDraw.Draw(Image.new("RGB", (384, 384)))
    taken: list = []
    for shift in range(5):
        box = (150 + shift, 150 + shift, 240 + shift, 240 + shift)
        detections._draw_label(pen, (384, 384), box, "7 0.93", "#ff5c57", taken)
    assert len(taken) == 5
    pairs = [(a, b) for i, a in enumerate(taken) for b in taken[:i]]
    assert all(detections._overlap(a, b) == 0 for a, b in pairs)


def test_colours_differ_between_classes_and_stay_the_same():
    colours = [detections._colour(i) for i in range(80)]
    assert len(set(colours)) == 80
    assert colours == [detections._colour(i) for i in range(80)]


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
    assert near(pixels(tmp_path / "det.png"), rgb(detections._colour(0)), 2).any()


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


def test_a_failing_disk_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("tr_det.runtime.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_detections(path, [], NAMES)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["picture.png"]
