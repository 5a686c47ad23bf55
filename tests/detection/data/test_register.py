import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from tests.tiny import BASE
from tr_det.detection import QuantTrainer, add_tr_det_config
from tr_det.detection.config.reading import load_config
from tr_det.detection.data.datasets import check_datasets
from tr_det.detection.data.register import entries_from

UNSET = ["MODEL.RETINANET.NUM_CLASSES", 80]


@pytest.fixture
def files(scenes):
    """Return split -> (annotations, images) of the tiny dataset."""
    folder = scenes / "digit_scenes"
    return {
        split: (folder / f"annotations/instances_{split}.json", folder / split)
        for split in ("train", "val")
    }


@pytest.fixture
def renamed(files, tmp_path):
    """Return ``renamed(split, change) -> path`` of a copy with other categories."""

    def make(split, change):
        coco = json.loads(files[split][0].read_text())
        change(coco["categories"])
        path = tmp_path / f"{split} other.json"
        path.write_text(json.dumps(coco))
        return path

    return make


@pytest.fixture(autouse=True)
def names():
    """Forget what a test has registered."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def pairs(train, val):
    return [
        *("DATASETS.REGISTER", [f"own_a {train[0]} {train[1]}", f"own_b '{val[0]}' {val[1]}"]),
        *("DATASETS.TRAIN", ("own_a",), "DATASETS.TEST", ("own_b",), "MODEL.DEVICE", "cpu"),
    ]


def test_a_config_registers_its_datasets_and_takes_their_classes(files):
    given = pairs(files["train"], files["val"])
    cfg = load_config(BASE, [*given, *UNSET, "DATALOADER.NUM_WORKERS", 0])
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 10
    check_datasets(cfg)
    assert len(next(iter(QuantTrainer.build_train_loader(cfg)))) == 8
    assert MetadataCatalog.get("own_a").thing_classes == list("0123456789")
    # A run's own config, read again in another process or in this one.
    assert load_config(BASE, [*given, "SEED", 1]).MODEL.RETINANET.NUM_CLASSES == 10


def test_a_config_that_is_made_in_code_follows_when_the_model_is_built(files):
    cfg = get_cfg()
    add_tr_det_config(cfg)
    cfg.merge_from_file(str(BASE))
    cfg.merge_from_list([*pairs(files["train"], files["val"]), *UNSET])
    cfg.freeze()
    assert build_model(cfg).num_classes == cfg.MODEL.RETINANET.NUM_CLASSES == 10
    assert cfg.is_frozen()
    assert "own_b" in DatasetCatalog.list()


def test_a_prepared_folder_is_one_entry():
    assert entries_from(["a 'my photos'"]) == [
        (f"a_{part}", f"my photos/{part}.json", "my photos/images")
        for part in ("train", "test", "fit", "select")
    ]


@pytest.mark.parametrize("line", ["", "a", "a b c d", "a 'b", 3])
def test_an_entry_of_another_form_is_refused(line):
    with pytest.raises(ValueError, match=r"^DATASETS\.REGISTER=.*: must be 'NAME ANNOTATIONS"):
        load_config(BASE, ["DATASETS.REGISTER", [line]])


def test_a_contradiction_is_refused(files, renamed):
    train, val = files["train"], files["val"]
    with pytest.raises(ValueError, match=r"NUM_CLASSES=7: must be 10, .*: 0, 1, 2, 3, 4 and 5 mo"):
        load_config(BASE, [*pairs(train, val), "MODEL.RETINANET.NUM_CLASSES", 7])
    DatasetCatalog.remove("own_b")
    MetadataCatalog.remove("own_b")
    other = renamed("val", lambda categories: categories[3].update(name="three"))
    with pytest.raises(ValueError, match=r"^DATASETS\.REGISTER='own_b with .*of own_a, 0, 1, 2"):
        load_config(BASE, pairs(train, (other, val[1])))


def test_a_name_belongs_to_its_files(files):
    load_config(BASE, pairs(files["train"], files["val"]))
    with pytest.raises(ValueError, match=r"must be another name, as 'own_a' is registered for"):
        load_config(BASE, pairs(files["val"], files["train"]))
    taken = f"digit_scenes_train {files['train'][0]} {files['train'][1]}"
    with pytest.raises(ValueError, match="'digit_scenes_train' is registered"):
        load_config(BASE, ["DATASETS.REGISTER", [taken]])


@pytest.mark.parametrize("text", ["{", "[]", '{"categories": []}', '{"categories": [{"id": 1}]}'])
def test_a_file_without_categories_is_named(files, tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: not a COCO annotation file"):
        load_config(BASE, pairs((tmp_path / "x.json", tmp_path), files["val"]))


def test_a_config_can_be_read_where_its_data_are_not(tmp_path):
    gone = (tmp_path / "gone.json", tmp_path)
    cfg = load_config(BASE, pairs(gone, gone))
    with pytest.raises(ValueError, match=r"gone\.json does not exist; DATASETS\.REGISTER says so"):
        check_datasets(cfg)
