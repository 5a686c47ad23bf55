"""Both tools of the export: a run's folder to a proven file, and the file's evaluation."""

import importlib.util
import json
import shlex
import shutil
from collections import defaultdict
from pathlib import Path

import evaluate_exported
import export_model
import numpy as np
import onnx
import predict
import pytest
import yaml
from onnx import numpy_helper

from tests.export.detector_case import write_onnx
from tr_det.classification.config.reading import load_config
from tr_det.classification.engine.run import evaluate_only, run
from tr_det.export import model as export
from tr_det.export import packed_file


@pytest.mark.slow
def test_a_detector_is_proven_and_finds_what_torch_finds(detector_run, call, tmp_path):
    from tr_det.detection import QuantCheckpointer, QuantTrainer
    from tr_det.detection.config.reading import load_config

    status, out, _ = call(export_model, detector_run, "--verify", "--images", 2)
    assert (status, out.count("proof holds")) == (0, 1)
    folder = detector_run / "export"
    assert (folder / "model_qcdq.decode.onnx").is_file()
    proof = json.loads((folder / "model_qcdq.proof.json").read_text())
    assert proof["holds"]
    assert proof["images"] == 2
    by_name = {backend["name"]: backend for backend in proof["backends"]}
    assert {"torch", "onnxruntime", "onnxruntime, not optimised"} <= by_name.keys()
    assert all(backend["wrong"] == 0 < backend["codes"] for backend in by_name.values())

    cfg = load_config(detector_run / "config.yaml", ["OUTPUT_DIR", str(tmp_path)])
    model = QuantTrainer.build_model(cfg)
    QuantCheckpointer(model).load(str(detector_run / "model_final.pth"))
    QuantTrainer.test(cfg, model)
    expected = detections(tmp_path / "inference")
    assert min(map(len, expected.values())) > 5
    status, out, _ = call(evaluate_exported, folder / "model_qcdq.onnx", "--runtime", "onnxruntime")
    assert status == 0
    assert "tiny_scenes_val: AP " in out
    found = detections(folder / "model_qcdq.onnxruntime")
    # In one image a code may differ: the order of the stem's float sums is each one's own.
    assert sum(same(expected[i], found[i]) for i in expected) >= len(expected) - 1

    status, out, _ = call(export_model, detector_run, "--verify", "--format", "packed")
    assert (status, out.count("proof holds")) == (0, 1)
    packed = folder / "model_packed.safetensors"
    assert call(evaluate_exported, packed, "--images", 3)[0] == 0
    found = detections(folder / "model_packed.torch")
    assert len(found) == 3
    assert all(same(expected[i], found[i]) for i in found)
    evaluation = json.loads((folder / "model_packed.torch/evaluation.json").read_text())
    assert evaluation["images"] == 3
    assert evaluation["ms_per_image"] > 0


def detections(folder):
    found = defaultdict(list)
    for entry in json.loads((Path(folder) / "coco_instances_results.json").read_text()):
        found[entry["image_id"]].append((entry["score"], entry["category_id"], *entry["bbox"]))
    return {image: np.array(sorted(entries)) for image, entries in found.items()}


def same(first, second):
    return first.shape == second.shape and np.allclose(first, second, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["integer", "torch"])
def test_a_classifier_is_proven_and_as_good_as_in_torch(classifier_run, call, form, monkeypatch):
    monkeypatch.chdir(classifier_run.parent)
    expected = evaluate_only(load_config("run/config.yaml"))["metrics"]
    assert call(export_model, "run", "--format", form, "--verify")[0] == 0
    file = next(Path("run/export").glob(f"model_{form}.[op]*"))
    if form == "integer":
        properties = onnx.load(str(file)).metadata_props
        metadata = json.loads(properties[0].value)
        assert metadata["task"] == "classification"
        assert {(x["weight_bits"], x["input_bits"]) for x in metadata["layers"]} == {(4, 3)}
    status, out, _ = call(evaluate_exported, file, "--trust")
    assert status == 0
    assert "top-1" in out
    found = json.loads(next(Path("run/export").glob(f"model_{form}.*/*.json")).read_text())
    assert found["images"] == 450  # a quarter of scikit-learn's digits
    assert found["metrics"]["accuracy"] == pytest.approx(expected["accuracy"], abs=0.5)
    assert found["metrics"]["loss"] == pytest.approx(expected["loss"], rel=1e-2)


def test_a_file_with_another_weight_fails_the_proof(classifier_run, call, monkeypatch, tmp_path):
    honest = export.export_onnx

    def tampered(*args):
        exported = honest(*args)
        stored = exported.model.graph.initializer
        weight = next(
            t for t in stored if t.data_type == onnx.TensorProto.UINT8 and len(t.dims) == 2
        )
        planes = numpy_helper.to_array(weight).copy()
        planes[-1, 0] ^= 1  # the highest bit of a code
        weight.raw_data = planes.tobytes()
        return exported

    monkeypatch.setattr(export, "export_onnx", tampered)
    output = tmp_path / "model.onnx"
    status, out, err = call(export_model, classifier_run, "--verify", "--output", output)
    assert status == 1
    assert "proof FAILS" in out
    assert "Traceback" not in err
    proof = json.loads((tmp_path / "model.proof.json").read_text())
    assert not proof["holds"]
    wrong = {b["name"]: b["wrong"] for b in proof["backends"]}
    assert wrong["torch"] == 0 < wrong["onnxruntime"]
    assert any("codes wrong" in line for line in proof["failures"])
    assert call(export_model, classifier_run, "--output", output)[0] == 0
    assert not (tmp_path / "model.proof.json").exists()  # it was another file's


def test_packed_codes_that_are_read_otherwise_fail_the_proof(classifier_run, call, monkeypatch):
    honest = packed_file.unpack
    monkeypatch.setattr(packed_file, "unpack", lambda *args: honest(*args) ^ 1)
    output = classifier_run.parent / "wrong.safetensors"
    arguments = ("--format", "packed", "--verify", "--output", output)
    status, out, _ = call(export_model, classifier_run, *arguments)
    assert status == 1
    assert "proof FAILS" in out
    assert "codes wrong" in out
    assert "output logits differs" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["empty"], "empty: not the folder of a run, it has no config.yaml"),
        (["untrained"], "untrained: has no checkpoint; train first"),
        (["run/config.yaml"], "--output: must name the file"),
        (["lazy.py", "--output", "a.onnx"], "lazy.py: must be a YAML file"),
        (["detector.yaml", "--output", "a.onnx"], "MODEL.WEIGHTS: names no checkpoint"),
        (["detector.yaml", "--output", "a.onnx", "MODEL.QUANT.BITS", "4"], "MODEL.QUANT.BITS"),
        (["run/config.yaml", "--output", "a.onnx"], "model.weights: names no checkpoint"),
        (["run", "--checkpoint", "lost.pth"], "--checkpoint: the checkpoint lost.pth does not"),
        (["run", "--checkpoint", "run/config.yaml"], "not a readable checkpoint"),
        (["run", "--output", "a.pt2"], "--output=a.pt2: must end in .onnx for --format qcdq"),
        (["run", "--output", "empty"], "--output=empty: must end in .onnx"),
        (["run", "--images", "0"], "--images=0: must be at least 1"),
        (["run", "--runtime", "openvino"], "--runtime: needs --verify"),
        (["run", "--all-layers"], "--all-layers: needs --verify"),
        (
            ["run", "--verify", "--format", "integer", "--runtime", "openvino"],
            "--runtime=openvino:",
        ),
        (["run", "--verify", "--format", "torch", "--runtime", "openvino"], "--runtime=openvino:"),
        (["run", "quant.bit", "3"], "quant.bit: unknown key; did you mean quant.bits"),
        (["run", "quant.bits"], "quant.bits: a key without a value"),
        (["detector", "INPUT.FORMAT", "YUV-BT.601"], "INPUT.FORMAT='YUV-BT.601': must be one of"),
        (["run", "quant.bits", "W2A2"], "does not fit the model"),
        (["fp"], "quant.bits=FP: the model is not quantized"),
        (["uncalibrated"], "has no scales of quantizers"),
        (["lsq", "solver.lr", "0.1"], "only --format packed and torch can hold"),
    ],
)
def test_a_mistake_in_an_export_is_one_line(cases, call, arguments, message):
    status, _, err = call(export_model, *arguments)
    assert status == 2
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not [*Path().rglob("*.onnx")]


@pytest.fixture
def cases(classifier_run, detector_run, tmp_path, monkeypatch):
    """Work in a folder with copies of a run that are broken in one place."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("lazy.py").write_text("model = 1")
    Path("detector.yaml").write_text("VERSION: 2\nMODEL: {QUANT: {ENABLED: True}}")
    config = yaml.safe_load((classifier_run / "config.yaml").read_text())

    def case(name, bits, **quant):
        shutil.copytree(classifier_run, name, ignore=shutil.ignore_patterns("export"))
        config["quant"].update(bits=bits, **quant)
        Path(name, "config.yaml").write_text(yaml.safe_dump(config))

    case("run", "W4A3")
    shutil.copytree(detector_run, "detector", ignore=shutil.ignore_patterns("export"))
    case("untrained", "W4A3")
    for path in [*Path("untrained").glob("*.pth"), Path("untrained/last_checkpoint")]:
        path.unlink()
    for name, bits, options in (("fp", "FP", {}), ("lsq", "W4A3", {"act_quantizer": "lsq_plus"})):
        case(name, bits, **options)
        if name == "lsq":
            trained = ["run.output_dir", name, "solver.iterations", "1"]
            shutil.copy("lsq/config.yaml", "lsq.yaml")
            shutil.rmtree("lsq")
            run(load_config("lsq.yaml", trained))
    case("uncalibrated", "W4A3", act_quantizer="fixed_grid")
    untrained("uncalibrated")
    return tmp_path


def untrained(folder):
    """Leave only what a full-precision checkpoint has."""
    import torch

    from tr_det.runtime.checkpoint_keys import is_quantizer_state

    path = Path(folder, "model_final.pth")
    state = torch.load(path, weights_only=True)["model"]
    torch.save({"model": {k: v for k, v in state.items() if not is_quantizer_state(k)}}, path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lost.onnx"], "lost.onnx: no such file"),
        (["run/config.yaml"], "run/config.yaml: must be a file of tools/export_model.py"),
        (["text.onnx"], "text.onnx: onnxruntime cannot read it"),
        (["text.safetensors"], "text.safetensors"),
        (["text.pt2", "--trust"], "text.pt2: no file of torch.export"),
        (["text.pt2"], "text.pt2: a program, and may hold any code; to run it, add --trust"),
        (["plain.onnx"], "plain.onnx: has no 'tr_det' metadata"),
        (["plain.onnx", "--images", "-1"], "--images=-1: must be at least 0"),
    ],
)
def test_a_mistake_in_an_evaluation_is_one_line(cases, call, arguments, message):
    for suffix in ("onnx", "safetensors", "pt2"):
        Path(f"text.{suffix}").write_text("no model")
    write_onnx(Path("plain.onnx"), None)
    status, _, err = call(evaluate_exported, *arguments)
    assert status == 2
    assert err.count("error: ") == 1
    assert message in err


@pytest.mark.parametrize(
    "text",
    ["", "- a", "5", "_BASE_: config.yaml", "_BASE_: 3", "{_BASE_: config.yaml, model: {}}"],
)
def test_a_config_that_cannot_be_read_is_one_line_of_every_tool(
    classifier_run, detector_run, call, tmp_path, text
):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    packed = tmp_path / "model.safetensors"
    of = classifier_run if "model" in text else detector_run
    assert call(export_model, of, "--format", "packed", "--output", packed)[0] == 0
    (tmp_path / "images").mkdir()
    image = tmp_path / "images/a.png"
    image.write_bytes(b"")
    for tool, *arguments in (
        (export_model, config, "--output", tmp_path / "a.onnx"),
        (evaluate_exported, packed, "--config-file", config),
        (predict, packed, image, "--config-file", config),
        (predict, detector_run / "model_final.pth", image, "--config-file", config),
    ):
        status, _, err = call(tool, *arguments)
        assert status == 2
        assert err.count("error: ") == 1
        assert str(config) in err


@pytest.mark.parametrize(("form", "package"), [("qcdq", "onnx"), ("packed", "safetensors")])
def test_a_missing_package_is_named_before_the_work(cases, call, monkeypatch, form, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *_: None if name == package else find(name)
    )
    monkeypatch.setattr(export_model, "make_subject", lambda *_: pytest.fail("built"))
    status, _, err = call(export_model, "run", "--format", form)
    assert status == 2
    assert f"needs {package}, which is not installed; pip install -e '.[export]'" in err


@pytest.mark.parametrize("rules", [[], ["head.bbox_subnet.* weight_bits=8 act_bits=8"]])
def test_the_keys_against_saturation_narrow_the_layers_at_risk_alone(make_config, tmp_path, rules):
    from tr_det.core import quantized_layers
    from tr_det.detection import QuantTrainer
    from tr_det.detection.config.reading import load_config
    from tr_det.detection.export import detector_metadata

    def bits_of(model):
        layers = quantized_layers(model)
        return {n: (q.weight_quantizer.bits, q.input_quantizer.bits) for n, q in layers}

    cfg = make_config(*() if rules else ("MODEL.QUANT.WEIGHT_BITS", 8, "MODEL.QUANT.ACT_BITS", 8))
    cfg.MODEL.QUANT.RULES = rules
    model = QuantTrainer.build_model(cfg)
    bits = bits_of(model)
    risks = {name: 7 for name, found in bits.items() if found == (8, 8)}
    assert 0 < len(risks) < len(bits) or not rules
    metadata = detector_metadata(cfg, model)
    (tmp_path / "config.yaml").write_text(metadata.config)
    pairs = shlex.split(export_model.keys_without(risks, bits, metadata))
    narrower = bits_of(QuantTrainer.build_model(load_config(tmp_path / "config.yaml", pairs)))
    assert narrower == {**bits, **{name: (7, bits[name][1]) for name in risks}}
