import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import export_model
import numpy as np
import predict
import pytest
from PIL import Image

from tests.export.detector_case import make_metadata, write_onnx
from tr_det.export.predictor import Predictor

TOOL = Path(__file__).parents[2] / "tools/predict.py"


@pytest.fixture
def run(monkeypatch, capsys):
    """Return ``run(*arguments) -> (exit status, stdout, stderr)``."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["predict.py", *map(str, arguments)])
        status = 0
        try:
            predict.main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def case(tmp_path, monkeypatch):
    """Work in a folder with model.onnx and, in images/, two pictures, an animation and a text."""
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "model.onnx", make_metadata())
    (tmp_path / "images/more").mkdir(parents=True)
    noise(1).save("images/more/a.png")
    noise(2).save("images/b.jpg")
    noise(3).save("images/c.gif", save_all=True, append_images=[noise(4)])
    Path("images/notes.txt").write_text("no image")
    return tmp_path


def noise(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((203, 131), Image.Resampling.BICUBIC)


def entries(path="output/predictions/predictions.json"):
    return json.loads(Path(path).read_text())


def test_a_folder_gives_coco_results_and_pictures(case, run):
    assert run("model.onnx", "images", "--score", 0.2)[0] == 0
    predictor = Predictor("model.onnx", score_threshold=0.2)
    with Image.open("images/c.gif") as image:
        image.seek(1)
        frame = image.convert("RGB")
    results = {0: predictor("images/b.jpg"), 2: predictor(frame)}
    results[3] = predictor("images/more/a.png")
    for image_id, expected in results.items():
        found = [entry for entry in entries() if entry["image_id"] == image_id]
        assert len(expected) > 3
        assert [entry["category_name"] for entry in found] == list(expected.names)
        coco = expected.to_coco(image_id)
        assert [{key: entry[key] for key in coco[0]} for entry in found] == coco
    files = {(e["image_id"], e["file_name"], e.get("frame")) for e in entries()}
    gif = "images/c.gif"
    assert files == {
        (0, "images/b.jpg", None),
        (1, gif, 0),
        (2, gif, 1),
        (3, "images/more/a.png", None),
    }
    folder = Path("output/predictions")
    written = {str(p.relative_to(folder)) for p in folder.rglob("*.*g")}
    assert written == {"b.jpg", "c_000000.png", "c_000001.png", "more/a.png"}
    with Image.open(folder / "more/a.png") as picture, Image.open("images/more/a.png") as image:
        assert picture.width == 2 * image.width  # enlarged for its labels
        enlarged = np.asarray(image.resize(picture.size, Image.Resampling.NEAREST), dtype=int)
        changed = (np.asarray(picture, dtype=int) != enlarged).any(axis=2)
    x0, _, x1, y1 = (results[3].boxes[0] * 2).tolist()
    assert changed[min(int(y1), changed.shape[0] - 1), int(x0 + 1) : int(x1 - 1)].all()
    assert changed.mean() < 0.8


def test_a_second_run_does_not_take_pictures_for_inputs(case, run):
    for _ in range(2):
        assert run("model.onnx", "images", "--output", "images/found")[0] == 0
        assert len({entry["file_name"] for entry in entries("images/found/predictions.json")}) == 3


def test_numbered_images_keep_their_numbers(case, run):
    for name in ("000000000139.jpg", "000000000285.jpg"):
        shutil.copy("images/b.jpg", f"images/more/{name}")
    Path("images/more/a.png").unlink()
    arguments = ("--score", 0.1, "--no-pictures", "--json", "found/coco.json")
    assert run("model.onnx", "images/more", *arguments)[0] == 0
    assert {entry["image_id"] for entry in entries("found/coco.json")} == {139, 285}
    assert not Path("output").exists()


def test_pictures_of_one_name_do_not_replace_each_other(case, run):
    shutil.copy("images/b.jpg", "b.jpg")
    shutil.copy("images/b.jpg", "b.jpeg")
    assert run("model.onnx", "b.jpg", "images/b.jpg", "b.jpeg", "--output", "out")[0] == 0
    assert {p.name for p in Path("out").glob("*.jpg")} == {"b.jpg", "b_2.jpg", "b_3.jpg"}


def test_broken_inputs_are_named_and_the_rest_is_done(case, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    content = Path("images/b.jpg").read_bytes()
    Path("images/cut.jpg").write_bytes(content[: len(content) // 2])
    Path("images/film.mp4").write_text("")
    status, _, err = run("model.onnx", "images", "--score", 0.1)
    assert status == 1
    assert "images/cut.jpg: cannot be read" in err
    assert "images/film.mp4: videos need PyAV" in err
    assert "pip install av" in err
    assert "2 of 5 inputs could not be read" in err
    assert len({entry["file_name"] for entry in entries()}) == 3


def test_an_older_result_stays_where_nothing_is_predicted(case, run):
    older = Path("output/predictions/predictions.json")
    older.parent.mkdir(parents=True)
    older.write_text("[1]")
    Path("broken.png").write_bytes(b"no image")
    status, out, err = run("model.onnx", "broken.png")
    assert (status, older.read_text(), out) == (1, "[1]", "")
    assert f"{older}: left as it was" in err
    older.unlink()
    assert run("model.onnx", "broken.png")[0] == 1
    assert not older.exists()


def test_other_classes_than_the_networks_are_one_line(case, run):
    few = dataclasses.replace(make_metadata(), classes=("a", "b"), category_ids=())
    write_onnx(case / "few.onnx", few)
    status, _, err = run("few.onnx", "images")
    assert (status, err.count("\n")) == (2, 1)
    assert "metadata.classes: lists 2," in err
    assert not Path("output").exists()


def test_what_was_done_before_an_interruption_is_kept(case, run, monkeypatch):
    calls = []

    def interrupt(self, image, predict_one=Predictor.__call__):
        calls.append(image)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return predict_one(self, image)

    monkeypatch.setattr(Predictor, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("model.onnx", "images", "--score", 0.1)
    assert {entry["image_id"] for entry in entries()} == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.onnx", "lost.jpg"], "lost.jpg: no such file or folder"),
        (["model.onnx", "empty"], "empty: has no images and no videos"),
        (["lost.onnx", "images"], "lost.onnx: no such file"),
        (["images/notes.txt", "images"], "images/notes.txt: must be a run"),
        (["empty", "images"], "empty: not the folder of a run"),
        (["lost.pth", "images"], "the checkpoint lost.pth does not exist"),
        (["weights.pth", "images"], "config.yaml: no such file; give the run's config"),
        (["weights.pth", "images", "--runtime", "openvino"], "--runtime=openvino: is for .onnx"),
        (["model.onnx", "images", "--config-file", "a.yaml"], "--config-file=a.yaml: is for .pth"),
        (["model.onnx", "images", "--score", "2"], "--score=2.0: must be from 0 to 1"),
        (["model.onnx", "images", "--threads", "-1"], "--threads=-1: must be at least 0"),
        (["model.onnx", "images", "--output", "images"], "--output=images: holds the inputs"),
        (["model.onnx", "images/b.jpg", "--output", "images"], "--output=images: holds the"),
        (["model.onnx", "images", "--output", "model.onnx"], "--output=model.onnx: must be a"),
        (["model.onnx", "images", "--json", "empty"], "--json=empty: must be a file"),
        (["model.onnx", "images", "--json", "weights.pth/a.json"], "weights.pth"),
    ],
)
def test_a_mistake_is_one_line(case, run, arguments, message):
    Path("empty").mkdir()
    Path("weights.pth").write_text("")
    status, out, err = run(*arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not Path("output").exists()


def test_neither_torch_nor_an_installation_is_needed(case):
    (case / "sitecustomize.py").write_text(
        "import sys\n"
        "for name in ('torch', 'detectron2', 'fvcore', 'tqdm', 'onnx', 'yaml'):\n"
        "    sys.modules[name] = None\n"
    )
    env = {**os.environ, "PYTHONPATH": str(case)}
    command = [sys.executable, TOOL, "model.onnx", "images", "--score", "0.1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "3/3 files"
    assert len({entry["file_name"] for entry in entries()}) == 3


def test_a_checkpoint_predicts_what_detectron2_predicts(run, make_config, scenes, tmp_path):
    from detectron2.data.detection_utils import read_image
    from detectron2.engine import DefaultPredictor

    from tr_det.detection import QuantCheckpointer, QuantTrainer, calibrate

    cfg = make_config("MODEL.RETINANET.SCORE_THRESH_TEST", 0.01)
    model = QuantTrainer.build_model(cfg)
    calibrate(model, QuantTrainer.build_train_loader(cfg), 1)
    folder = tmp_path / "run"
    QuantCheckpointer(model, str(folder)).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    images = sorted((scenes / "digit_scenes/val").glob("*.png"))
    json_file = tmp_path / "a.json"
    options = ("--score", 0.01, "--no-pictures", "--json", json_file)
    assert run(folder, *images, *options)[0] == 0
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    predictor = DefaultPredictor(cfg)
    assert len(entries(json_file)) > 10
    for path in images:
        found = [e for e in entries(json_file) if e["image_id"] == int(path.stem)]
        expected = predictor(read_image(path, "BGR"))["instances"]
        assert [e["category_id"] for e in found] == (expected.pred_classes + 1).tolist()
        scores = [e["score"] for e in found]
        np.testing.assert_allclose(scores, expected.scores.numpy(), rtol=1e-5)
    first = entries(json_file)
    assert run(folder / "model_final.pth", *images, *options)[0] == 0
    assert entries(json_file) == first


@pytest.mark.slow
def test_a_classifier_predicts_in_every_form(classifier_run, call, tmp_path):
    import torch

    from tr_det.classification.config.reading import load_config
    from tr_det.classification.data.datasets import load_data
    from tr_det.classification.models.build import build_network

    config = load_config(classifier_run / "config.yaml")
    data = load_data(config.data)
    model = build_network(config, data, published=False)
    model.load_state_dict(torch.load(classifier_run / "model_final.pth")["model"])
    pixels = np.random.default_rng(0).integers(0, 2, (3, 8, 8), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image * 255).save(tmp_path / f"{number}.png")
    black, white = data.test.images.min(), data.test.images.max()  # as the digits are normalised
    with torch.no_grad():
        logits = model.eval()(torch.where(torch.tensor(pixels[:, None]) > 0, white, black))
    forms = [classifier_run, classifier_run / "model_final.pth"]
    for form, suffix in (("packed", "safetensors"), ("torch", "pt2")):
        forms.append(tmp_path / f"model.{suffix}")
        assert call(export_model, classifier_run, "--format", form, "--output", forms[-1])[0] == 0
    images = sorted(tmp_path.glob("*.png"))
    for path in forms:
        json_file = tmp_path / "found.json"
        options = ("--no-pictures", "--trust", "--json", json_file)
        assert call(predict, path, *images, *options)[0] == 0
        for entry, expected in zip(entries(json_file), logits.softmax(1).numpy(), strict=True):
            shares = [found["probability"] for found in entry["classes"]]
            np.testing.assert_allclose(shares, np.sort(expected)[:-6:-1], rtol=1e-4)
            assert entry["classes"][0]["name"] == str(expected.argmax())


def test_a_detectors_packed_file_predicts_what_its_run_predicts(
    detector_run, scenes, call, tmp_path
):
    file = tmp_path / "model.safetensors"
    assert call(export_model, detector_run, "--format", "packed", "--output", file)[0] == 0
    images = sorted((scenes / "digit_scenes/val").glob("*.png"))
    options = ("--score", 0.01, "--no-pictures", "--json")
    for model, name in ((detector_run, "a.json"), (file, "b.json")):
        assert call(predict, model, *images, *options, tmp_path / name)[0] == 0
    first, second = entries(tmp_path / "a.json"), entries(tmp_path / "b.json")
    assert len(first) == len(second) > 10
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.pop("bbox"), other.pop("bbox"), rtol=1e-4, atol=1e-3)
        assert one.pop("score") == pytest.approx(other.pop("score"), rel=1e-4)
        assert one == other
