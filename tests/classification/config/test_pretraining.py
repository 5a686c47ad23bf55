"""Pretraining, through whole runs."""

import contextlib
from pathlib import Path

import pytest
import train_classifier

from tr_det.classification.config.reading import load_config
from tr_det.classification.engine.run import run
from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.runtime.processes import only_writer
from tr_det.runtime.results import read_results


def qat(*overrides):
    return load_config("qat.yaml", overrides)


def test_the_pretraining_is_trained_once_and_heads_the_table(folder):
    fp = Path(run(qat())["paths"]["start"])
    written = fp.stat().st_mtime_ns
    again = run(qat("run.output_dir", "again", "run.seed", "1"))
    assert fp.stat().st_mtime_ns == written
    lines = train_classifier.table(train_classifier.with_pretraining(again)).splitlines()
    assert len(lines) == 6
    assert lines[3].split()[:3] == ["resnet_cifar", "FP", "SGD"]
    assert lines[4].split()[:3] == ["resnet_cifar", "W2A2", "SGDT"]
    (folder / "fp.yaml").write_text((folder / "fp.yaml").read_text().replace("0.05", "0.06"))
    with pytest.raises(ValueError, match=r"solver\.lr=0\.06: .*fp_fp.* is of a run with 0\.05"):
        run(qat("run.output_dir", "third"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.precision", "float16"], r"run\.precision='float16'"),
        (["model.options", "{depth: 14, width: 4}"], r"model\.options=.* must be \{'depth': 8,"),
        (["data.name", "cifar10"], r"data\.name='cifar10': must be 'digits' as in .*fp\.yaml"),
        (["data.image_size", "8"], r"data\.image_size=8: must be 0 as in .*fp\.yaml"),
        (
            ["data.hold_out", "0.2"],
            r"data\.hold_out=0\.2: must be 0 or 0\.0 as in .*fp\.yaml, which",
        ),
        (["data.crop_ratio", "0.5"], r"data\.crop_ratio=0\.5: must be .* as in .*fp\.yaml"),
        (
            ["model.pretraining", "loop.yaml"],
            r"model\.pretraining=.* not build on itself",
        ),
        (["model.pretraining", "w4a4.yaml"], r"quant\.bits='W2A2': must be reached from W4A4"),
        (
            ["run.output_dir", "output/../output/classification/here/fp_fp"],
            r"output_dir=.*other than",
        ),
    ],
)
def test_a_mistake_shows_before_the_pretraining_is_trained(folder, overrides, message):
    (folder / "w4a4.yaml").write_text("_BASE_: fp.yaml\nquant: {bits: W4A4}\n")
    (folder / "loop.yaml").write_text("_BASE_: fp.yaml\nmodel: {pretraining: loop.yaml}\n")
    overrides = [text.replace("here", folder.name) for text in overrides]
    with pytest.raises(ValueError, match=message):
        run(qat(*overrides))
    assert not list(folder.rglob("*.pth"))


REACTNET = "reactnet18, options: {small_images: true, width: 4}"


@pytest.mark.parametrize("bits", ["W1A1", "W2A2"])
def test_a_binary_network_starts_from_real_weights_with_inputs_of_its_own_bits(folder, bits):
    """As in the recipes of ReActNet, with the loss and the teacher of the one for ImageNet."""
    learnt = ["model.options", "{}", "run.output_dir", "teacher", "solver.iterations", "1"]
    run(load_config("fp.yaml", learnt))
    tiny = (
        (folder / "fp.yaml")
        .read_text()
        .replace("resnet_cifar, options: {depth: 8, width: 4}", REACTNET)
    )
    tiny = tiny.replace("iterations: 8", "iterations: 2")
    (folder / "real.yaml").write_text(f"{tiny}quant: {{bits: W32A1}}\n")
    (folder / "binary.yaml").write_text(
        "_BASE_: real.yaml\nmodel: {pretraining: real.yaml}\n"
        "solver: {loss: distributional, teacher: resnet_cifar, "
        "teacher_weights: teacher/model_final.pth}\n"
    )
    results = run(load_config("binary.yaml", ["quant.bits", bits]))
    first = read_results(Path(results["paths"]["start"]).parent)
    assert first["config"]["quant"]["bits"] == f"W32A{bits[-1]}"


def test_runs_started_together_train_their_pretraining_once(folder, monkeypatch):
    trained, plain = [], ClassifierTrainer.train

    def train(trainer):
        trained.append(trainer.config.quant.bits)
        return plain(trainer)

    @contextlib.contextmanager
    def another_first(path, key, wait=False):
        if wait:
            run(load_config("fp.yaml"))
        with only_writer(path, key):
            yield

    monkeypatch.setattr(ClassifierTrainer, "train", train)
    monkeypatch.setattr("tr_det.classification.engine.run.only_writer", another_first)
    run(qat())
    assert trained == ["FP", "W2A2"]
