"""Small labelled images in the common formats."""

import numpy as np
import pytest
from PIL import Image

from tr_det.detection.data.images import ORIENTATION
from tr_det.detection.data.prepare import folder

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Return the paths of pictures, which take half a second each and are not drawn."""
    paths = []
    monkeypatch.setattr(folder, "draw_examples", lambda path, *_: paths.append(path.name))
    return paths


@pytest.fixture
def paint(tmp_path):
    """Return ``paint(name, size, box, orientation) -> path``: a black image with a white box.

    The box is in pixels of the stored image; the file is a PNG unless its name says otherwise.
    """

    def make(name, size=(40, 30), box=(0, 0, 0, 0), orientation=1):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = 255
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(pixels).save(path, exif=exif)
        return path

    return make


@pytest.fixture
def annotate(tmp_path):
    """Return ``annotate(name, boxes, size)``: writes a VOC file; boxes are (label, l, t, r, b)."""

    def make(name, boxes, size=(40, 30), difficult=0):
        edges = ("xmin", "ymin", "xmax", "ymax")
        objects = "".join(
            OBJECT.format(
                label,
                difficult,
                "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(edges, box)),
            )
            for label, *box in boxes
        )
        stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<annotation>{stated}{objects}</annotation>")
        return path

    return make


@pytest.fixture
def voc(paint, annotate, tmp_path):
    """Make six images in VOC's layout, two classes; return the folder."""
    for number in range(6):
        name = f"a{number}"
        box = (5, 5, 15 + number, 20)
        paint(f"JPEGImages/{name}.png", box=box)
        annotate(f"Annotations/{name}.xml", [("cat", *box), ("ant", 1, 2, 11, 12)])
    return tmp_path / "source"
