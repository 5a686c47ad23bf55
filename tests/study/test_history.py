"""Histories against the trainer's own model and metrics."""

import json
import math
import shutil

import pytest
import torch

from tr_det.classification.config.reading import load_config
from tr_det.classification.data.datasets import load_data
from tr_det.classification.models.build import build_network
from tr_det.core import quantized_layers
from tr_det.study.history import read_history


@pytest.fixture
def copy(cells, tmp_path):
    return shutil.copytree(cells["SGDT"], tmp_path / "a")


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_latents_are_those_of_the_first_the_last_and_some_checkpoints_between(cells):
    history = read_history(cells["SGDT"])
    assert list(history.latents) == [3, 12, 21, 30]
    assert history.transition_points.tolist() == [-1.5, -0.5, 0.5]
    config = load_config(cells["SGDT"] / "config.yaml")
    model = build_network(config, load_data(config.data), published=False)
    for update, latents in history.latents.items():
        name = "model_final" if update == 30 else f"model_{update:07d}"
        stored = torch.load(cells["SGDT"] / f"{name}.pth", weights_only=True)
        model.load_state_dict(stored["model"])
        layers = dict(quantized_layers(model))
        assert history.layer == list(layers)[len(layers) // 2]
        layer = layers[history.layer]
        assert torch.equal(latents, layer.weight_quantizer.normalized(layer.weight).flatten())


def test_curves_are_the_metrics_at_their_updates(cells):
    history = read_history(cells["SGDT"])
    rows = [row for row in records(cells["SGDT"]) if "lr" in row]
    assert history.talr.updates.tolist() == list(range(1, 31))
    assert history.talr.values.shape == history.step_size.values.shape == (30, 6)
    for key in ("running", "talr", "step_size", "distance"):
        expected = pytest.approx([row[f"tr/{key}"] for row in rows])
        assert getattr(history, key).mean().tolist() == expected
    assert history.lr.mean().tolist() == [row["lr"] for row in rows]
    assert history.accuracy.updates.tolist() == [10, 20, 30]
    assert history.final_accuracy == history.accuracy.mean()[-1].item()


def test_tracking_is_measured_after_a_tenth_from_where_the_target_is_known(cells):
    history = read_history(cells["SGDT"])
    known = [row for row in records(cells["SGDT"]) if "tr/target" in row]
    updates = [row["iteration"] + 1 for row in known]
    assert history.target.updates.tolist() == updates
    assert updates[0] > 1  # the probe for lambda comes first
    schedule = (1 + math.cos(math.pi * known[0]["iteration"] / 30)) / 2
    first_target = known[0]["tr/target"] / schedule
    assert history.factor == pytest.approx(first_target / 2**0.5)
    layers = [key.removesuffix("running") for key in known[0] if "layers" in key and "runn" in key]
    assert len(layers) == 6
    late = [row for row in known if row["iteration"] >= 3]
    errors = [abs(row[f"{name}running"] - row[f"{name}target"]) for row in late for name in layers]
    expected = sum(errors) / len(errors) / first_target
    assert history.tracking_error() == pytest.approx(expected)


def test_a_plain_optimizer_has_no_target(cells):
    history = read_history(cells["SGD"])
    assert len(history.running) == len(history.target) == len(history.talr) == 0
    assert math.isnan(history.factor)
    assert len(history.step_size) == 30


def test_a_run_that_goes_on_is_read_as_far_as_it_went(copy):
    for path in copy.glob("model_*.pth"):
        path.rename(path.with_name("model_0000002.part.pth"))  # what is being written
    first, *_ = (copy / "metrics.json").read_text().splitlines()
    (copy / "metrics.json").write_text(first + '\n{"iteration": 9, "lr')
    history = read_history(copy)
    assert history.latents == {}
    assert len(history.talr) == 1
    assert len(history.accuracy) == 0
    assert math.isnan(history.final_accuracy)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("metrics.json", lambda path: path.unlink(), r"a: has no metrics\.json; must be run\.out"),
        ("metrics.json", lambda path: path.write_text("3\n"), r"has no effective step sizes"),
        ("config.yaml", lambda path: path.write_text("MODEL: {}"), r"config\.yaml: not the config"),
    ],
)
def test_a_file_that_is_missing_or_of_something_else_is_named(copy, name, spoil, message):
    spoil(copy / name)
    with pytest.raises((ValueError, OSError), match=message):
        read_history(copy)
