"""The demo on the tiny dataset: results, pictures, interruption, options."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from tr_det.detection import QuantCheckpointer
from tr_det.detection.config.reading import load_config
from tr_det.detection.demo import export
from tr_det.detection.demo import run as demo_module
from tr_det.detection.demo.run import DemoOptions, build_config, run_demo
from tr_det.runtime.processes import only_writer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def make_options(tiny, make_config, tmp_path, monkeypatch):
    """Return ``make(**fields) -> DemoOptions`` for the tiny model, dataset and 20 iterations."""
    cfg = make_config()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    cfg.MODEL.QUANT.ENABLED = False
    QuantCheckpointer(build_model(cfg), str(tmp_path)).save("fp")
    built = SimpleNamespace(root=tmp_path)
    monkeypatch.setattr(demo_module, "build_digit_scenes", lambda *_, **__: built)

    def make(**fields):
        return DemoOptions(
            **{
                "config_file": tmp_path / "config.yaml",
                "weights": tmp_path / "fp.pth",
                "output": tmp_path / "demo",
                "iterations": 20,
                # An untrained detector scores around 0.01: keep its detections.
                "overrides": ("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
                **fields,
            }
        )

    return make


def test_the_demo_writes_results_pictures_and_the_table(make_options, tmp_path, monkeypatch):
    said = []
    options = make_options()
    results = run_demo(options, say=said.append)
    stored = json.loads((tmp_path / "demo/results.json").read_text())
    assert {"fp", "before_qat", "after_qat", "tr", "seconds"} <= stored.keys()
    for phase in ("fp", "before_qat", "after_qat"):
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} <= stored[phase].keys()
    assert stored["tr"]["iteration"] == list(range(20))
    assert stored["tr"]["initial_target"] == pytest.approx(2e-3)
    assert stored["tr"]["target"][0] == pytest.approx(2e-3)
    assert stored["tr"]["target"][-1] < 2e-5
    assert stored["seconds"]["qat"] > 0
    assert stored["storage_mb"]["quantized"] < stored["storage_mb"]["fp"] / 2
    assert results["weight_bits"] == stored["weight_bits"] == 4
    for picture in ("tr_curves.png", "detections.png"):
        assert (tmp_path / "demo" / picture).read_bytes().startswith(b"\x89PNG")
    text = "\n".join(said)
    assert "W4A4 before QAT" in text
    assert "[5/5]" in text
    assert "20/20" in text
    assert "left" in text

    # The same command after a complete run is a new run, and throws nothing away.
    said.clear()
    folder, moved, rename = tmp_path / "demo/runs" / options.run_name, [], Path.rename
    left = {path.name for path in folder.iterdir()}

    def killed(path, to):
        if len(moved) == len(left) // 2:
            raise KeyboardInterrupt
        moved.append(path.name)
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run_demo(options, say=said.append)
    run_demo(options, say=said.append)
    assert "done before" not in "\n".join(said)
    assert "resuming" not in "\n".join(said)
    assert [path.name for path in folder.parent.iterdir()] == [options.run_name]
    parts = [{path.name for path in (folder / f"earlier_{number}").iterdir()} for number in (1, 2)]
    assert parts[0] | parts[1] == left
    assert "demo.json" in parts[1]  # last: until then the folder is that of a complete run


def test_a_demo_stopped_in_its_phases_ends_like_one_that_was_not(
    make_options, tiny, scenes, tmp_path, monkeypatch
):
    overrides = (*make_options().overrides, "SOLVER.CHECKPOINT_PERIOD", "5")
    options, said = make_options(overrides=overrides), []
    stored = tmp_path / "demo/results.json"

    def stopped(*_, **__):
        raise KeyboardInterrupt

    for stop in ("calibrate", "12/20", "[5/5]", "draw_detections"):

        def say(text, stop=stop):
            said.append(text)
            if text.strip().startswith(stop):
                raise KeyboardInterrupt

        tiny.register_tiny_scenes(scenes)  # a new process has loaded no dataset
        with monkeypatch.context() as patch:
            patch.setattr(demo_module, stop, stopped, raising=False)
            with pytest.raises(KeyboardInterrupt):
                run_demo(options, say=say)
        assert not stored.exists()
    tiny.register_tiny_scenes(scenes)
    run_demo(options, say=said.append)
    assert "\n".join(said).count("resuming at iteration 10") == 1
    results = json.loads(stored.read_text())
    for picture in ("draw_tr", "draw_detections"):
        monkeypatch.setattr(demo_module, picture, lambda *_: None)
    run_demo(options, say=said.append)
    assert {**results, "seconds": 0} == {**json.loads(stored.read_text()), "seconds": 0}


@pytest.mark.parametrize("text", ['{"seconds": {"fp', "[1]"])
def test_a_damaged_state_is_named(make_options, text):
    options = make_options()
    state = options.output / "runs" / options.run_name / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(text)
    with pytest.raises(ValueError, match=f"^{state}: (damaged|not written by the demo), or "):
        run_demo(options, say=lambda text: None)


def test_a_folder_has_one_demo(make_options, tmp_path):
    with only_writer(tmp_path / "demo", "x"), pytest.raises(ValueError, match="--output=.*demo'"):
        run_demo(make_options(), say=lambda text: None)


@pytest.mark.slow
def test_an_export_can_be_added_to_a_complete_run(make_options, tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        for package in ("onnx", "onnxruntime", "openvino"):
            without.setitem(sys.modules, package, None)  # an import would fail
        trained = run_demo(make_options(), say=lambda text: None)
    assert "export" not in trained
    said = []

    def interrupt(text):
        if text.startswith("[6/6]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(make_options(export=True), say=interrupt)
    results = run_demo(make_options(export=True), say=said.append)
    text = "\n".join(said)
    assert text.count("done before") == 5
    assert [path.name for path in (tmp_path / "demo/runs").iterdir()] == [make_options().run_name]
    stored = json.loads((tmp_path / "demo/results.json").read_text())
    assert stored["export"].keys() == results["export"].keys()
    exported = results["export"]
    assert exported["failures"] == []
    assert exported["codes"] > 0
    assert [row["runtime"] for row in exported["rows"]] == ["onnxruntime", "openvino"]
    for row in exported["rows"]:
        assert row["metrics"]["AP"] == pytest.approx(trained["after_qat"]["AP"], abs=0.05)
        folder = tmp_path / "demo/runs" / make_options().run_name
        file = folder / f"export/model_{row['format']}.onnx"
        assert row["file_mb"] == file.stat().st_size / 1e6
        assert row["over_float32"] > 0 < row["ms"]
    assert "W4A4 exported (OpenVINO)" in text
    assert "proof            holds" in text


def test_without_its_packages_an_export_is_refused_before_any_work(make_options, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    make_options()
    with pytest.raises(ValueError, match=r"--export: needs onnx.*pip install -e '\.\[export\]'"):
        make_options(export=True)


def test_on_other_data_full_precision_is_trained_first(make_options, make_config, tiny, tmp_path):
    """With a plain optimizer, which has no target."""
    data, said = MetadataCatalog.get(tiny.TRAIN), []
    full = make_config("MODEL.QUANT.ENABLED", False, "SOLVER.OPTIMIZER", "SGD")
    (tmp_path / "full.yaml").write_text(full.dump())
    options = make_options(
        optimizer="SGD",
        data=f"other {data.json_file} {data.image_root}",
        weights=Path("nowhere"),
        fp_config_file=tmp_path / "full.yaml",
        fp_iterations=20,
        overrides=("SOLVER.BASE_LR", "0.02", "SEED", "4", "DATASETS.TRAIN", "('other',)"),
    )
    results = run_demo(options, say=said.append)
    assert "[1/5] Training in full precision for 20 iterations" in said
    trained = load_config(tmp_path / "demo/runs" / options.fp_name / "config.yaml")
    assert trained.DATASETS.TRAIN == ("other",)
    assert (trained.SOLVER.MAX_ITER, trained.SEED) == (20, 4)
    assert trained.SOLVER.BASE_LR == full.SOLVER.BASE_LR  # the solver's overrides are of QAT
    assert results["seconds"]["fp_training"] > 0
    assert results["tr"]["target"] == []
    assert "SGD: no target" in "\n".join(said)
    assert build_config(make_options(optimizer="SGD")).MODEL.QUANT.LEARN_WEIGHT_SCALE
    assert not build_config(make_options()).MODEL.QUANT.LEARN_WEIGHT_SCALE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 9}, "--bits=9: must be"),
        ({"optimizer": "SGDX"}, r"--optimizer='SGDX': must be one of"),
        ({"overrides": ("OUTPUT_DIR", "x")}, "OUTPUT_DIR: the demo sets it itself; use --output"),
        ({"iterations": 5}, "--iters=5: must be at least 20"),
    ],
)
def test_bad_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DemoOptions(config_file=Path(), weights=Path(), output=Path(), **fields)


def test_runs_with_other_options_have_other_folders(make_options):
    names = {
        make_options().run_name,
        make_options(bits=2).run_name,
        make_options(optimizer="SGD").run_name,
        make_options(iterations=30).run_name,
        make_options(overrides=()).run_name,
    }
    assert len(names) == 5


def test_data_that_are_prepared_anew_make_another_run(make_options, tmp_path):
    names = []
    for text in ("{}", "{} "):
        (tmp_path / "train.json").write_text(text)
        options = make_options(data=f"mine {tmp_path}")
        names += [options.run_name, options.fp_name]
    assert len(set(names)) == 4


def test_the_shipped_checkpoint_fits_the_shipped_config(tmp_path):
    weights = ROOT / "tr_det/digits/weights/retinanet_R18_half_fp.pth"
    options = DemoOptions(
        config_file=ROOT / "configs/digits/retinanet_R18_half_w4a4_sgdt.yaml",
        weights=weights,
        output=tmp_path,
    )
    cfg = build_config(options).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    QuantCheckpointer(model).load(str(weights))
