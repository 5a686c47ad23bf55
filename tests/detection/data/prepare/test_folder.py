"""The prepared folder: its parts, what is cleaned, and nothing half done."""

import json

import pytest

from tr_det.detection.data.prepare import split
from tr_det.detection.data.prepare.folder import Options, prepare_folder
from tr_det.detection.data.prepare.source import Box, Faults, Photo, Source
from tr_det.detection.data.prepare.voc import read_voc


def test_fit_and_select_share_out_the_training_images(voc, tmp_path, drawn):
    made = prepare_folder(read_voc(voc, Faults()), tmp_path / "t", Options(), Faults())
    names = {}
    for part, table in made.tables.items():
        assert json.loads((tmp_path / "t" / f"{part}.json").read_text()) == table
        names[part] = {image["file_name"] for image in table["images"]}
    assert names["fit"] | names["select"] == names["train"]
    assert not names["fit"] & names["select"]
    assert not names["train"] & names["test"]
    assert [len(names[part]) for part in ("train", "test", "fit", "select")] == [5, 1, 4, 1]
    assert drawn == ["examples.png"]
    again = prepare_folder(read_voc(voc, Faults()), tmp_path / "u", Options(), Faults())
    assert again.tables == made.tables
    other = prepare_folder(read_voc(voc, Faults()), tmp_path / "v", Options(seed=3), Faults())
    assert other.tables != made.tables


def test_a_name_stays_in_its_part_when_others_are_added():
    names = [f"photo{number}" for number in range(200)]
    few, more = split.drawn(names, 0.2, seed=0), split.drawn([*names, "a", "b", "c"], 0.2, seed=0)
    assert len(few) == 40
    assert len(few - more) <= 3


def test_boxes_are_cut_or_left_out_and_the_counts_are_said(paint, tmp_path):
    boxes = (
        Box("a", -5, 2, 10, 12),  # cut
        Box("a", 50, 2, 60, 12),  # beyond
        Box("a", 3, 3, 3, 9),  # no area
        Box("a", 9, 3, 3, 9),  # reversed
        Box("a", -0.5, 0, 40.5, 30),  # rounding
        Box("a", 1, 1, 9, 9, crowd=True),
        Box("a", -5, 2, 10, 12),  # the first again
    )
    photos = [Photo(paint(f"{name}.png"), boxes, size=(80, 60)) for name in "abc"]
    made = prepare_folder(Source(photos, ("a", "b"), []), tmp_path / "t", Options(), Faults())
    notes = made.tables["test"]["annotations"]
    assert [note["bbox"] for note in notes] == [[0, 2, 10, 10], [0, 0, 40, 30], [1, 1, 8, 8]]
    assert [note["iscrowd"] for note in notes] == [0, 0, 1]
    assert made.notes == [
        "3 images have another size than their annotation says; boxes are taken as they are",
        "9 boxes without area in their image are left out",
        "3 boxes repeat another one of their image and are left out",
        "6 boxes reached beyond their image by more than a pixel and are cut",
        "3 boxes are marked as difficult or crowd: neither trained on nor scored",
        "classes without a box are left out: b",
    ]


def test_images_of_one_name_in_two_folders_are_told_apart(paint, tmp_path):
    photos = [
        Photo(paint(f"{split}/{name}.png"), (Box("a", 1, 1, 9, 9),), split)
        for split in ("train", "val")
        for name in "ab"
    ]
    made = prepare_folder(Source(photos, ("a",), []), tmp_path / "t", Options(), Faults())
    names = [image["file_name"] for image in made.tables["test"]["images"]]
    assert names == ["val_a.png", "val_b.png"]  # without test images those of validation
    assert all((tmp_path / "t/images" / name).is_file() for name in names)


@pytest.mark.parametrize("names", [("A.png", "a.png"), ("a.png", "a.png")])
def test_images_that_some_disks_could_not_tell_apart_are_refused(paint, tmp_path, names):
    photos = [Photo(paint(name), (Box("a", 1, 1, 9, 9),), "") for name in names]
    with pytest.raises(ValueError, match=r"^[Aa]\.png: is listed twice, or two images would"):
        prepare_folder(Source(photos, ("a",), []), tmp_path / "t", Options(), Faults())


def test_an_image_that_cannot_be_read_leaves_nothing_behind(voc, tmp_path):
    path = voc / "JPEGImages/a3.png"
    path.write_bytes(path.read_bytes()[:60])
    source, target = read_voc(voc, Faults()), tmp_path / "t"
    with pytest.raises(ValueError, match=r"a3\.png: .*--skip-broken"):
        prepare_folder(source, target, Options(), Faults())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    made = prepare_folder(source, target, Options(), Faults(skip=True))
    assert "1 broken files or entries are left out, e.g. " in made.notes[0]
    assert sum(len(made.tables[part]["images"]) for part in ("train", "test")) == 5


def test_a_target_with_something_in_it_is_refused(voc, tmp_path):
    with pytest.raises(ValueError, match=r"^TARGET=.*: must be a new or an empty folder"):
        prepare_folder(read_voc(voc, Faults()), voc, Options(), Faults())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": -1}, "--size=-1: must be at least 0"),
        ({"test_share": 1.0}, r"--test-share=1\.0: must be in \(0, 1\)"),
        ({"size": 9, "link": True}, "--link=True: must be without --size"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)
