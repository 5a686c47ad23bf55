"""Boxes go where the pixels go."""

import json

import numpy as np
import pytest
from PIL import Image

from tr_det.detection.data.prepare.folder import Options, prepare_folder
from tr_det.detection.data.prepare.source import Box, Faults, Photo, Source
from tr_det.export.images import opened

BOX = (4, 6, 20, 16)


def prepared(photos, target, **options):
    """Return the folder and name -> (entry, boxes) of all parts."""
    prepare_folder(Source(photos, ("a",), []), target, Options(**options), Faults())
    found = {}
    for part in ("train", "test"):
        coco = json.loads((target / f"{part}.json").read_text())
        for image in coco["images"]:
            notes = [n for n in coco["annotations"] if n["image_id"] == image["id"]]
            found[image["file_name"]] = image, [note["bbox"] for note in notes]
    return found


def white(path):
    """Return left, top, width, height of an upright image's bright pixels, and its size."""
    image = opened(path)
    rows, columns = np.nonzero(np.asarray(image.convert("L")) > 127)
    left, top = columns.min(), rows.min()
    return [left, top, columns.max() + 1 - left, rows.max() + 1 - top], image.size


@pytest.mark.parametrize("size", [0, 20])
def test_boxes_of_turned_images_lie_on_what_they_show(paint, tmp_path, size):
    """An independent reader (Detectron2's rule: EXIF is followed) finds the painted pixels."""
    photos = []
    for orientation in range(1, 9):
        path = paint(f"stored{orientation}.png", (40, 30), BOX, orientation)
        photos.append(Photo(path, (Box("a", *BOX),), size=(40, 30)))
        # Shares are of the upright image, as viewers show it.
        (left, top, width, height), (w, h) = white(path)
        edges = (left / w, top / h, (left + width) / w, (top + height) / h)
        path = paint(f"shares{orientation}.png", (40, 30), BOX, orientation)
        photos.append(Photo(path, (Box("a", *edges),), relative=True))
    # Unless the size tells, a box is of the upright image: turns by 180 degrees do not tell.
    photos = [p for p in photos if p.relative or p.path.stem[-1] in "15678"]
    found = prepared(photos, tmp_path / "target", size=size)
    assert len(found) == 13
    for name, (entry, boxes) in found.items():
        painted, shape = white(tmp_path / "target/images" / name)
        assert (entry["width"], entry["height"]) == shape
        assert max(shape) == (size or 40)
        np.testing.assert_allclose(boxes, [painted], atol=0.51 if size else 0.02)


def test_without_a_new_size_files_are_the_same_bytes(paint, tmp_path):
    paths = [paint(f"{name}.jpg", box=BOX) for name in "abc"]
    photos = [Photo(path, (Box("a", *BOX),)) for path in paths]
    prepared(photos, tmp_path / "copied")
    prepared(photos, tmp_path / "linked", link=True)
    for path in paths:
        assert (tmp_path / "copied/images" / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "linked/images" / path.name).resolve() == path.resolve()


def test_images_are_never_enlarged(paint, tmp_path):
    photos = [Photo(paint(f"{name}.png", box=BOX), (Box("a", *BOX),)) for name in "abc"]
    prepared(photos, tmp_path / "target", size=400)
    assert Image.open(tmp_path / "target/images/a.png").size == (40, 30)
