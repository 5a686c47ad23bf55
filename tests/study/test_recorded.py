"""Courses that are read are held against the trainer's own model and metrics."""

import math
import shutil

import pytest
import torch

from tr_det.classification.config.file import load_config
from tr_det.classification.engine.run import run
from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.core import quantized_layers
from tr_det.runtime.metrics import read_records
from tr_det.study.recorded import read_run

SHORT = """
model: {name: resnet_cifar, options: {depth: 8, width: 4}}
quant: {bits: W2A2}
solver: {batch_size: 32, iterations: 8, lr: 0.05, optimizer: SGDT}
tr: {factor: auto, update: pi, momentum: -1}
run: {log_period: 2, eval_period: 4, checkpoint_period: 1, keep_checkpoints: 0, device: cpu}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a run's folder and what its middle layer was when each checkpoint was written."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "short.yaml").write_text(SHORT)
    seen = {}
    save = ClassifierTrainer.save

    def look(self, name):
        layers = [(n, x) for n, x in quantized_layers(self.model) if x.weight_quantizer is not None]
        name_of_layer, layer = layers[len(layers) // 2]
        latents = layer.weight_quantizer.normalized(layer.weight).flatten().clone()
        seen[self.iteration] = name_of_layer, latents
        save(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifierTrainer, "save", look)
        run(load_config(folder / "short.yaml", ["run.output_dir", str(folder / "a")]))
    return folder / "a", seen


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "a")
    return tmp_path / "a"


def test_latents_are_those_of_the_first_the_last_and_some_between(trained):
    folder, seen = trained
    _, course = read_run(folder)
    assert list(course.latents) == [1, 3, 6, 8]
    for update, latents in course.latents.items():
        name, expected = seen[update]
        assert course.layer == name
        assert torch.equal(latents, expected)
    assert course.transition_points.tolist() == [-1.5, -0.5, 0.5]


def test_curves_are_the_metrics_at_their_updates(trained):
    folder, _ = trained
    config, course = read_run(folder)
    assert config.solver.optimizer == "SGDT"
    rows = [row for row in read_records(folder / "metrics.json") if "lr" in row]
    assert course.talr.updates.tolist() == [2, 4, 6, 8]
    for key in ("running", "talr", "step_size", "distance"):
        assert getattr(course, key).mean().tolist() == [row[f"tr/{key}"] for row in rows]
    assert course.rate.mean().tolist() == [row["lr"] for row in rows]
    assert course.accuracy.updates.tolist() == [4, 8]
    assert course.final_accuracy == course.accuracy.mean()[-1].item()


def test_a_target_starts_where_it_is_known(copy):
    lines = (copy / "metrics.json").read_text().splitlines()
    (copy / "metrics.json").write_text(
        "\n".join([lines[0].replace("tr/target", "else"), *lines[1:], '{"iteration": 9, "lr'])
    )
    _, course = read_run(copy)
    assert 2 not in course.target.updates.tolist()
    assert course.running.updates.tolist() == [2, 4, 6, 8]


def test_a_run_that_goes_on_is_read_as_far_as_it_went(copy):
    for path in copy.glob("model_*.pth"):
        path.rename(path.with_name("model_0000002.part.pth"))  # what is being written
    rows = [line for line in (copy / "metrics.json").read_text().splitlines() if "test" not in line]
    (copy / "metrics.json").write_text(rows[0])
    _, course = read_run(copy)
    assert course.latents == {}
    assert len(course.talr) == 1
    assert len(course.accuracy) == 0
    assert math.isnan(course.final_accuracy)


def _cut(path):
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("metrics.json", lambda path: path.unlink(), r"a: has no metrics\.json; must be run\.out"),
        ("config.yaml", lambda path: path.unlink(), r"a: has no config\.yaml; must be run\.out"),
        (
            "metrics.json",
            lambda path: path.write_bytes(b"\xff\xfe"),
            r"metrics\.json: not readable",
        ),
        ("metrics.json", lambda path: path.write_text("3\n"), r"has no effective step sizes"),
        ("config.yaml", lambda path: path.write_text("MODEL: {}"), r"config\.yaml: not the config"),
        ("config.yaml", lambda path: path.write_text("a: ["), r"config\.yaml: not the config"),
        ("model_final.pth", _cut, r"model_final\.pth: cannot be read as a checkpoint"),
        ("model_final.pth", lambda path: path.write_text(""), r"final\.pth: cannot be read"),
        ("model_final.pth", lambda path: torch.save([1], path), r"final\.pth: cannot be read"),
    ],
)
def test_what_is_no_run_or_is_damaged_is_told_by_its_file(copy, name, spoil, message):
    spoil(copy / name)
    with pytest.raises((ValueError, OSError), match=message):
        read_run(copy)


def test_weights_of_other_bits_are_refused(copy):
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("W2A2", "W4A2"))
    with pytest.raises(ValueError, match=r"model_0000001\.pth: cannot be read as a checkpoint"):
        read_run(copy)
