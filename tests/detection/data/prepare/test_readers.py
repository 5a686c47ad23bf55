"""VOC, YOLO and COCO: what is read of each, and what is wrong with a file of each."""

import doctest
import json

import pytest

from tr_det.detection.data import register
from tr_det.detection.data.prepare import source as source_module
from tr_det.detection.data.prepare.coco import read_coco
from tr_det.detection.data.prepare.source import Box, Faults
from tr_det.detection.data.prepare.voc import read_voc
from tr_det.detection.data.prepare.yolo import read_yolo

READERS = {"voc": read_voc, "yolo": read_yolo, "coco": read_coco}


def by_name(source):
    return {photo.path.stem: photo for photo in source.photos}


def test_voc_takes_the_lists_of_splits(voc):
    lists = voc / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a0\na1 1\n\na2\n")
    (lists / "train.txt").write_text("a0\na1\n")
    (lists / "test.txt").write_text("a3\na4\n")
    (lists / "cat_test.txt").write_text("a5\n")  # of a class, in the challenge's own files
    source = read_voc(voc, Faults())
    assert {name: photo.split for name, photo in by_name(source).items()} == {
        **dict.fromkeys(("a0", "a1", "a2"), "train"),
        **dict.fromkeys(("a3", "a4"), "test"),
    }
    assert source.classes == ("ant", "cat")
    assert source.notes == ["1 images are in no list of ImageSets/Main"]
    assert by_name(source)["a3"].boxes == (Box("cat", 5, 5, 18, 20), Box("ant", 1, 2, 11, 12))


def test_voc_takes_the_lists_of_folders_inside_and_says_what_is_in_two(paint, annotate):
    for place in ("VOC2007", "VOC2012"):
        for name in "ab":
            root = paint(f"{place}/JPEGImages/{name}.jpg").parents[2]
            annotate(f"{place}/Annotations/{name}.xml", [("cat", 1, 2, 3, 4)])
        (root / place / "ImageSets/Main").mkdir(parents=True)
    for place, part, text in (
        ("2007", "train", "a\n"),
        ("2007", "test", "b\na\n"),
        ("2012", "test", "a"),
    ):
        (root / f"VOC{place}/ImageSets/Main/{part}.txt").write_text(text)
    source = read_voc(root, Faults())
    found = [(photo.path.parts[-3], photo.path.stem, photo.split) for photo in source.photos]
    assert found == [("VOC2007", "a", "train"), ("VOC2007", "b", "test"), ("VOC2012", "a", "test")]
    assert "1 images of " in source.notes[0]
    assert source.notes[0].endswith(
        "VOC2007/ImageSets/Main/test.txt are in a list to train on, too"
    )
    assert source.notes[1] == "1 images are in no list of ImageSets/Main"
    faults = Faults()
    (root / "VOC2012/ImageSets/Main/val.txt").write_text("c")
    read_voc(root, faults)
    (fault,) = faults.found
    assert "VOC2012/ImageSets/Main: lists 'c'" in fault


def test_voc_files_may_lie_beside_their_images_and_difficult_ones_are_marked(paint, annotate):
    path = paint("one/x.1.jpg")
    paint("valid/x.1.jpg")
    paint("valid/unlabelled.jpg")
    annotate("one/x.1.xml", [("cat", 1, 2, 3, 4)], difficult=1)
    annotate("valid/x.1.xml", [])
    source = read_voc(path.parents[1], Faults())
    assert [photo.path.parent.name for photo in source.photos] == ["one", "valid"]
    assert [photo.split for photo in source.photos] == ["", "val"]
    assert source.photos[0].boxes == (Box("cat", 1, 2, 3, 4, crowd=True),)
    assert source.notes == ["1 images have no .xml file"]


def yolo(paint, root_file, text, folders, lines="1 0.5 0.5 0.2 0.4\n"):
    """Write YAML or names, and an image with labels in each folder; return the source's folder."""
    for number, folder in enumerate(folders):
        path = paint(f"{folder}/y{number}.png")
        labels = path.parent.parent / path.parent.name.replace("images", "labels")
        if "images/" in folder:
            labels = path.parents[2] / "labels" / path.parent.name
        labels.mkdir(parents=True, exist_ok=True)
        (labels / f"y{number}.txt").write_text(lines)
    root = path.parents[len(folder.split("/"))]
    (root / root_file).write_text(text)
    return root


@pytest.mark.parametrize(
    ("root_file", "text", "folders", "splits"),
    [
        ("data.yaml", "{train: images/train, val: images/val, names: {0: ant, 1: cat}}",
         ["images/train", "images/val"], ["train", "val"]),
        ("data.yaml", "{train: ../train/images, val: ../valid/images, test: ../test/images, nc: 2, "
         "names: [ant, cat]}", ["train/images", "valid/images", "test/images"],
         ["train", "val", "test"]),
        ("classes.txt", "ant\ncat\n", ["all"], [""]),
        ("classes.txt", "ant\ncat\n", ["images/test", "images/train"], ["test", "train"]),
    ],
)  # fmt: skip
def test_yolo_in_its_layouts(paint, root_file, text, folders, splits):
    source = read_yolo(yolo(paint, root_file, text, folders), Faults())
    assert [photo.split for photo in source.photos] == splits
    assert source.classes == ("ant", "cat")
    for photo in source.photos:
        assert photo.relative
        assert photo.boxes[0].label == "cat"
        assert photo.boxes[0][1:5] == pytest.approx((0.4, 0.3, 0.6, 0.7))


def test_yolos_polygons_become_boxes_and_images_without_labels_have_none(paint):
    root = yolo(paint, "classes.txt", "ant\n", ["a"], "0 0.1 0.2 0.5 0.3 0.2 0.9\n")
    paint("a/empty.png")
    source = read_yolo(root, Faults())
    assert by_name(source)["y0"].boxes == (Box("ant", 0.1, 0.2, 0.5, 0.9),)
    assert by_name(source)["empty"].boxes == ()
    assert "1 images have no file of labels" in source.notes[0]


def coco(folder, name, categories, file_names, **changes):
    """Write a COCO file with one box of each category in each image."""
    ids = {category: number for number, category in enumerate(categories, start=7)}
    notes = [
        {"id": n, "image_id": n, "category_id": number, "bbox": [1, 2, 10, 11], **changes}
        for n, _ in enumerate(file_names)
        for number in ids.values()
    ]
    images = [
        {"id": n, "file_name": file, "width": 40, "height": 30} for n, file in enumerate(file_names)
    ]
    table = {"images": images, "annotations": notes}
    table["categories"] = [{"id": number, "name": label} for label, number in ids.items()]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return path


def test_several_coco_files_are_one_source(paint, tmp_path):
    for split in ("train", "valid"):
        paint(f"{split}/same.png")
    root = tmp_path / "source"
    coco(root, "train/_annotations.coco.json", ["ant", "cat"], ["same.png"])
    coco(root, "valid/_annotations.coco.json", ["cat", "dog"], ["same.png"])
    (root / "other.json").write_text("{}")
    source = read_coco(root, Faults())
    assert source.classes == ("ant", "cat", "dog")
    assert [(p.split, p.path.parent.name) for p in source.photos] == [
        ("train", "train"),
        ("val", "valid"),
    ]
    assert source.photos[1].boxes == (Box("cat", 1, 2, 11, 13), Box("dog", 1, 2, 11, 13))


def test_coco_files_apart_from_their_images_take_those_of_their_split(paint, tmp_path):
    for split in ("train", "val"):
        paint(f"{split}2017/1.png")
        name = f"annotations/instances_{split}2017.json"
        coco(tmp_path / "source", name, ["a"], ["1.png"])
    source = read_coco(tmp_path / "source", Faults())
    assert [(p.split, p.path.parent.name) for p in source.photos] == [
        ("train", "train2017"),
        ("val", "val2017"),
    ]


def test_a_coco_file_finds_images_in_coco_s_own_layout(paint, tmp_path):
    paint("val2017/1.png")
    file = coco(tmp_path / "source", "annotations/instances_val2017.json", ["a"], ["1.png"])
    (photo,) = read_coco(file, Faults()).photos
    assert photo.path.is_file()
    assert photo.split == ""  # one file is split anew


BROKEN = {
    "cut off": ("voc", "a.xml", "<annotation><object>", "a.xml: no element found"),
    "no annotation": ("voc", "a.xml", "<html></html>", "is <html>; must be <annotation>"),
    "no such encoding": (
        "voc",
        "a.xml",
        "<?xml version='1.0' encoding='nope'?><annotation/>",
        "unknown encoding: nope",
    ),
    "no image": ("voc", "b.xml", "<annotation></annotation>", "there is no image b"),
    "no name": ("voc", "a.xml", "<annotation><object/></annotation>", "<object> has no <name>"),
    "no number": (
        "voc",
        "a.xml",
        "<annotation><object><name>x</name><bndbox><xmin>1,5</xmin></bndbox></object></annotation>",
        "bndbox/xmin='1,5'; must be a number",
    ),
    "words": ("yolo", "a.txt", "cat 1 2 3 4", "line 1: 'cat 1 2 3 4' must be finite numbers"),
    "three": ("yolo", "a.txt", "0 1 2 3", "line 1: must be a class and four numbers"),
    "class": ("yolo", "a.txt", "0 1 1 1 1\n2 1 1 1 1", "line 2: class 2 of the 1 that are named"),
    "infinite": (
        "yolo",
        "a.txt",
        "0 .5 .5 inf 1",
        "line 1: '0 .5 .5 inf 1' must be finite numbers",
    ),
    "pixels": ("yolo", "a.txt", "0 20 15 8 6", "line 1: the box's centre (20, 15) must be in"),
    "pixels of a polygon": ("yolo", "a.txt", "0 1 1 9 1 9 9", "line 1: the box's centre (5, 5) mu"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_or_left_out(paint, case):
    form, name, text, message = BROKEN[case]
    root = paint("a.png").parent
    (root / "classes.txt").write_text("ant\n")
    (root / name).write_text(text)
    faults = Faults()
    READERS[form](root, faults)
    with pytest.raises(ValueError, match="--skip-broken") as caught:
        faults.settle()
    assert f"{name}: " in str(caught.value)
    assert message in str(caught.value)
    faults.skip = True
    assert "1 broken files or entries are left out" in faults.settle()


def test_the_folder_of_a_coco_file_s_image_tells_it_from_others_of_its_name(paint, tmp_path):
    for name in ("cam1/1.png", "cam2/1.png", "cam2/2.png"):
        paint(name)
    paint("photos/3.png")
    names = ["cam1/1.png", "cam2/1.png", "cam1/2.png", "/elsewhere/cam3/2.png", "images/3.png"]
    coco(tmp_path / "source", "annotations/all.json", ["a"], names)
    faults = Faults(skip=True)
    photos = read_coco(tmp_path / "source", faults).photos
    found = [str(photo.path.relative_to(tmp_path / "source")) for photo in photos]
    assert found == ["cam1/1.png", "cam2/1.png", "cam2/2.png", "photos/3.png"]
    assert "there is no image cam1/2.jpg" in faults.settle()


def test_a_broken_coco_file_is_named(paint, tmp_path):
    paint("a.png")
    root = tmp_path / "source"
    faults = Faults()
    coco(root, "a.json", ["ant"], ["a.png", "gone.png"], bbox=[1, 2])
    read_coco(root, faults)
    assert len(faults.found) == 3
    (root / "a.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"a\.json: no JSON"):
        read_coco(root, Faults())
    (root / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.json: no JSON"):
        read_coco(root, Faults())


def box_of(image, **changes):
    return {"id": 1, "image_id": image, "category_id": 7, "bbox": [1, 2, 10, 11], **changes}


def image(number, name):
    return {"id": number, "file_name": f"{name}.png", "width": 40, "height": 30}


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("annotations", box_of("0"), "annotation 1: image_id='0': must be the id of one image"),
        ("annotations", box_of(77), "annotation 1: image_id=77: must be the id of one image"),
        ("annotations", box_of([]), "annotation 1: "),
        ("annotations", box_of(0, category_id=8), "category_id=8: must be the id of a category"),
        ("annotations", box_of(0, bbox=[1, 2, float("nan"), 3]), "bbox=[1, 2, nan, 3]: must be fo"),
        ("annotations", box_of(0, bbox=[1, 2, float("inf"), 3]), "bbox=[1, 2, inf, 3]: must be fo"),
        ("annotations", box_of(0, iscrowd="0"), "annotation 1: iscrowd='0': must be 0 or 1"),
        ("annotations", box_of(0, bbox=[1, 2, 3]), "bbox=[1, 2, 3]: must be four finite numbers"),
        ("annotations", box_of(0, bbox="1234"), "bbox='1234': must be four finite numbers"),
        ("images", {"file_name": "a.png"}, "image 'a.png': has no 'id'"),
        ("images", image(5, "a") | {"width": float("inf")}, "image 'a.png': cannot convert"),
    ],
)
def test_a_coco_entry_that_pycocotools_would_drop_is_named(paint, tmp_path, part, entry, message):
    paint("a.png")
    file = coco(tmp_path / "source", "a.json", ["ant"], ["a.png"])
    table = json.loads(file.read_text())
    table[part].append(entry)
    file.write_text(json.dumps(table))
    faults = Faults()
    (photo,) = read_coco(file, faults).photos
    assert photo.boxes == (Box("ant", 1, 2, 11, 13),)  # the others are as they were
    (found,) = faults.found
    assert found.startswith(f"{file}: ")
    assert message in found


def test_coco_images_of_one_id_are_named_with_their_boxes(paint, tmp_path):
    for name in "abc":
        paint(f"{name}.png")
    file = coco(tmp_path / "source", "a.json", ["ant"], ["a.png", "b.png"])
    table = json.loads(file.read_text())
    table["images"].append(image(1, "c"))
    file.write_text(json.dumps(table))
    faults = Faults()
    assert [photo.path.name for photo in read_coco(file, faults).photos] == ["a.png"]
    assert [fault.partition(": ")[2] for fault in faults.found] == [
        "image 'b.png': id=1: must be unique",
        "image 'c.png': id=1: must be unique",
        "annotation 1: image_id=1: must be the id of one image",
    ]


def test_categories_of_one_id_are_refused_and_of_one_name_are_one_class(paint, tmp_path):
    paint("a.png")
    file = coco(tmp_path / "source", "a.json", ["ant"], ["a.png"])
    table = json.loads(file.read_text())
    table["categories"].append({"id": 8, "name": "ant"})
    table["annotations"].append(box_of(0, category_id=8))
    file.write_text(json.dumps(table))
    source = read_coco(file, Faults())
    assert source.classes == ("ant",)
    assert [box.label for box in source.photos[0].boxes] == ["ant", "ant"]
    assert source.notes == ["several classes are named ant: taken as one"]
    table["categories"][1] = {"id": 7, "name": "cat"}
    file.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"a\.json: two categories have the id 7"):
        read_coco(file, Faults())


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("data.yaml", "{train: a, names: {1: ant, 2: cat}}", "must be numbered from 0 on"),
        ("data.yaml", "{train: a, names: {x: ant, y: cat}}", "must be numbered from 0 on"),
        ("data.yaml", "{train: a, names: [ant, no]}", "names=.*in quotes if need be"),
        ("data.yaml", "{train: a, names: [ant], names: [cat]}", "the key names comes 2 times"),
        ("classes.txt", "ant\n\ncat\n", r"classes\.txt: line 2 must be the name of a class"),
    ],
)
def test_yolo_names_that_others_could_be_taken_for_are_refused(paint, file, text, message):
    with pytest.raises(ValueError, match=message):
        read_yolo(yolo(paint, file, text, ["a"]), Faults())


def test_yolo_texts_of_another_encoding_are_named_and_images_of_two_parts_counted(paint):
    root = yolo(paint, "data.yaml", "{train: a, val: b, test: a, names: [ant, cat]}", ["a", "b"])
    source = read_yolo(root, Faults())
    assert [photo.split for photo in source.photos] == ["train", "val"]
    assert source.notes == ["1 images are in several parts: taken for the first one"]
    (root / "data.yaml").write_bytes("names: [fourmi à feu]".encode("latin-1"))
    with pytest.raises(ValueError, match=r"data\.yaml: must be a text in UTF-8"):
        read_yolo(root, Faults())


def test_yolo_lists_of_other_names_are_refused_and_equal_names_are_one_class(paint):
    root = yolo(paint, "classes.txt", "ant\nant\n\n", ["a"])
    (root / "a/classes.txt").write_text("ant\nant")
    source = read_yolo(root, Faults())
    assert (source.classes, source.photos[0].boxes[0].label) == (("ant",), "ant")
    assert source.notes == ["several classes are named ant: taken as one"]
    (root / "a/classes.txt").write_text("cat\nant")
    with pytest.raises(ValueError, match=r"classes\.txt: names other classes than .*classes\.txt"):
        read_yolo(root, Faults())


def test_yolo_labels_without_an_image_are_counted(paint):
    root = yolo(paint, "classes.txt", "ant\ncat\n", ["images/train"])
    (root / "labels/train/gone.txt").write_text("0 0.5 0.5 0.1 0.1")
    (root / "labels/train/classes.txt").write_text("ant\ncat\n")
    source = read_yolo(root, Faults())
    assert source.notes == ["1 files of labels belong to no image, e.g. gone.txt"]


@pytest.mark.parametrize("form", READERS)
def test_a_folder_without_labels_is_refused(paint, form):
    root = paint("a.png").parent
    with pytest.raises(ValueError, match="must hold"):
        READERS[form](root, Faults())


@pytest.mark.parametrize("module", [register, source_module])
def test_examples_in_docstrings_give_what_they_show(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert result.failed == 0
