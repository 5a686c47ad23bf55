"""From labelled photographs to a trained detector, by command lines alone."""

import analyze_dataset
import numpy as np
import prepare_dataset
import pytest
import train_net
from PIL import Image

from tr_det.detection.config.reading import load_config

CONFIG = "configs/BCCD/retinanet_R18_half_w4a4_sgdt.yaml"
BOX = "<{0}min>{1}</{0}min><{0}max>{2}</{0}max>"


@pytest.fixture
def photos(tmp_path):
    """Ten photographs with a bright square each, of two classes by its size; VOC files."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(10):
        pixels = random.integers(0, 90, (60, 80, 3), dtype=np.uint8)
        x, y, side = random.integers(0, 40), random.integers(0, 30), 12 + 12 * (number % 2)
        pixels[y : y + side, x : x + side] = 250
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
        box = BOX.format("x", x, x + side) + BOX.format("y", y, y + side)
        name = ("nut", "bolt")[number % 2]
        (folder / f"{number}.xml").write_text(
            f"<annotation><object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"
        )
    return folder


@pytest.fixture
def invoke(monkeypatch):
    monkeypatch.setattr("logging.raiseExceptions", False)  # handlers of earlier tests are closed

    def call(tool, *words):
        monkeypatch.setattr("sys.argv", [tool.__name__, *map(str, words)])
        getattr(tool, "invoke_main", getattr(tool, "main", None))()

    return call


def test_two_commands_train_on_a_folder_of_voc_files(photos, tmp_path, invoke, capsys):
    target = tmp_path / "target folder"
    invoke(prepare_dataset, "voc", photos, target)
    said = capsys.readouterr().out
    assert "10 images, classes bolt, nut" in said
    assert "train.json" in said
    entry = f"mine '{target}'"
    assert f"""DATASETS.REGISTER '["mine '"'"'{target}'"'"'"]' """ in said
    small = {
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.WEIGHTS": "",
        "INPUT.MIN_SIZE_TRAIN": (60,),
        "INPUT.MIN_SIZE_TEST": 60,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "DATASETS.REGISTER": [entry],
        "DATASETS.TRAIN": ("mine_train",),
        "DATASETS.TEST": ("mine_test",),
        "OUTPUT_DIR": tmp_path / "run",
    }
    pairs = [str(word) for pair in small.items() for word in pair]
    invoke(train_net, "--config-file", CONFIG, *pairs)
    assert (tmp_path / "run/model_final.pth").is_file()
    # The run's own config says all that its checkpoint needs.
    cfg = load_config(tmp_path / "run/config.yaml")
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2
    assert [entry] == cfg.DATASETS.REGISTER

    capsys.readouterr()
    picture = tmp_path / "a.png"
    invoke(analyze_dataset, "mine_train", "--output", picture, "DATASETS.REGISTER", str([entry]))
    said = capsys.readouterr().out
    assert "8 boxes in 8 images" in said
    assert "proposed" in said
    assert "MODEL.ANCHOR_GENERATOR.SIZES" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (target / "examples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("tool", "words", "message"),
    [
        (prepare_dataset, ["voc", "nowhere", "new"], "SOURCE='nowhere': there is no such"),
        (prepare_dataset, ["voc", "{photos}/1.xml", "new"], "1.xml': must be a folder"),
        (prepare_dataset, ["voc", "{photos}", "{photos}"], "': must be a new or an empty folder"),
        (prepare_dataset, ["yolo", "{photos}", "new"], "must hold data.yaml"),
        (analyze_dataset, ["nothing"], "NAME_OR_JSON='nothing': must be a registered dataset"),
        (analyze_dataset, ["{photos}/1.xml"], "1.xml: not a COCO annotation file"),
    ],
)
def test_a_mistake_is_one_line(photos, invoke, capsys, tool, words, message):
    with pytest.raises(SystemExit, match="2"):
        invoke(tool, *(word.format(photos=photos) for word in words))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
