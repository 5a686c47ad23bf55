"""Quantizers and methods of the core in our trainer, each by one change of a config."""

import json
from pathlib import Path

import pytest
import torch
import train_net

from tr_det.core import quantized_layers
from tr_det.core.quantizers import FREE
from tr_det.detection import QuantCheckpointer, QuantTrainer

WEIGHTS, INPUTS = "MODEL.QUANT.WEIGHT_QUANTIZER", "MODEL.QUANT.ACT_QUANTIZER"
PER_CHANNEL = ("MODEL.QUANT.WEIGHT_OPTIONS", ["per_channel=True"])
GUESTS = {
    "lsq": (WEIGHTS, "lsq", *PER_CHANNEL, INPUTS, "lsq"),
    "running_minmax": (INPUTS, "running_minmax"),
    "tracker": ("SOLVER.METHODS", ["tracker"]),
    "freezing": ("SOLVER.METHODS", ["freezing threshold=0.0015"]),
    "weight_average": ("SOLVER.METHODS", ["weight_average decay=0.9"]),
    "dampening": ("SOLVER.METHODS", ["dampening weight=0.5 weight_final=0.5"]),
    "bn_reestimation": ("SOLVER.METHODS", ["bn_reestimation batches=2"]),
    "scales": ("MODEL.QUANT.LEARN_WEIGHT_SCALE", True, "SOLVER.TR.SCALES", "sum"),
    "parq": (WEIGHTS, "lsbq", "MODEL.QUANT.WEIGHT_OPTIONS", ["prox=parq", "end=0.5"]),
}


def config_of(tiny, folder, guest):
    """Return the tiny config with one change; codes move a lot in it, and scales visibly."""
    cfg = tiny.tiny_config(folder, "SOLVER.SCALE_LR_FACTOR", 10.0, *GUESTS[guest])
    cfg.SOLVER.TR.FACTOR, cfg.SOLVER.TR.GAIN, cfg.SOLVER.MOMENTUM = 0.5, 1.0, 0.0
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    if guest not in ("weight_average", "bn_reestimation"):
        cfg.DATASETS.TEST = ()
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    return cfg


class Found:
    """What a run of four iterations has left in its folder."""

    def __init__(self, cfg):
        self.cfg, self.folder = cfg, Path(cfg.OUTPUT_DIR)

    @property
    def metrics(self):
        return json.loads((self.folder / "metrics.json").read_text().splitlines()[-1])

    @property
    def methods(self):
        """Return the state of the methods."""
        saved = torch.load(self.folder / "model_final.pth", weights_only=True)
        return saved["trainer"]["_trainer"]["optimizer"]["tr_det"]["methods"]

    def model(self, name="model_final"):
        model = QuantTrainer.build_model(self.cfg)
        QuantCheckpointer(model).load(f"{self.folder}/{name}.pth")
        return model

    def layers(self):
        """Return the quantized layers after two iterations and at the end, by name."""
        early, late = (
            dict(quantized_layers(self.model(name))) for name in ("model_0000001", "model_final")
        )
        return {name: (early[name], layer) for name, layer in late.items()}


@pytest.fixture
def run(tiny, scenes, tmp_path):
    """Return ``run(guest)``, which trains and returns what `Found` reads."""

    def train(guest):
        cfg = config_of(tiny, tmp_path / guest, guest)
        QuantTrainer(cfg).train()
        return Found(cfg)

    return train


def test_lsq_with_a_scale_per_channel(run):
    found = run("lsq")
    layers = found.layers()
    for name, (early, late) in layers.items():
        scale = late.weight_quantizer.scale
        assert scale.shape == late.weight.shape[:1], name
        assert torch.equal(scale, early.weight_quantizer.scale), name  # frozen under TR
        codes = late.quantized_weight() / scale[:, None, None, None]
        assert (codes - codes.round()).abs().max() < 1e-4, name
        assert -8.001 < codes.min() < codes.max() < 7.001, name
        assert late.output_scale is None, name
    # Those of inputs are trained.
    scales = [(a.input_quantizer.scale, b.input_quantizer.scale) for a, b in layers.values()]
    assert sum(not torch.equal(*pair) for pair in scales) > len(scales) / 2
    assert 0 < found.metrics["tr/rate"] < 1


def test_running_minmax_follows_every_update(run):
    found = run("running_minmax")
    for name, (early, late) in found.layers().items():
        assert not torch.equal(late.input_quantizer.range, early.input_quantizer.range), name


def test_the_tracker_counts_oscillations(run):
    found = run("tracker")
    tracks = found.methods["tracker"]
    assert tracks.keys() == {f"{name}.weight" for name, _ in quantized_layers(found.model())}
    frequencies = torch.cat([track["frequency"].flatten() for track in tracks.values()])
    assert frequencies.max() > 0
    assert found.metrics["tr/frequency"] == pytest.approx(frequencies.mean().item(), rel=1e-3)
    assert "tr/oscillating" in found.metrics
    assert found.metrics["tr/frozen"] == 0


def test_freezing_holds_what_oscillates(run):
    found = run("freezing")
    assert set(found.methods) == {"freezing", "tracker"}
    layers = dict(quantized_layers(found.model()))
    held = {name: layer.weight_quantizer.held for name, layer in layers.items()}
    count = sum((codes != FREE).sum().item() for codes in held.values() if codes is not None)
    weights = sum(layer.weight.numel() for layer in layers.values())
    assert found.metrics["tr/frozen"] == pytest.approx(count / weights, rel=1e-4)
    assert count > 0
    for name, layer in layers.items():
        if held[name] is not None:
            which = held[name] != FREE
            assert torch.equal(layer.quantized_weight()[which], held[name][which] / 8), name


def test_dampening_is_at_work(run):
    assert run("dampening").metrics["tr/dampening"] == 0.5


def test_trained_scales_are_told_apart_under_tr_scheduling(run):
    found = run("scales")
    moved = [
        not torch.equal(early.weight_quantizer.scale, late.weight_quantizer.scale)
        for early, late in found.layers().values()
    ]
    assert sum(moved) > len(moved) / 2
    assert found.metrics["tr/by_scale"] > 0
    assert found.metrics["tr/scale_drift"] > 0


def test_parq_ends_at_the_levels(run):
    found = run("parq")
    for name, layer in quantized_layers(found.model().train()):
        assert len(layer.weight_quantizer.eval()(layer.weight).unique()) <= 16, name
    assert found.metrics["tr/by_scale"] > 0  # levels are refitted


def test_batch_norms_are_estimated_for_the_evaluation_only(run):
    check_reestimated_norms(run("bn_reestimation"))


def check_reestimated_norms(found):
    kept, last = (found.model(name).state_dict() for name in ("model_averaged", "model_final"))
    statistics = [key for key in last if key.endswith(("running_mean", "running_var"))]
    assert statistics
    for key, value in last.items():
        assert (key in statistics) or torch.equal(kept[key], value), key
    differ = [key for key in statistics if not torch.equal(kept[key], last[key])]
    assert len(differ) > len(statistics) / 2


def test_the_average_is_evaluated_and_saved(run):
    found = run("weight_average")
    again = found.cfg.clone()
    again.MODEL.WEIGHTS, again.OUTPUT_DIR = (
        f"{found.folder}/model_averaged.pth",
        f"{found.folder}/again",
    )
    train_net.evaluate(again, resume=False)
    check_average(found)


def check_average(found):
    average, last = (
        dict(found.model(name).named_parameters()) for name in ("model_averaged", "model_final")
    )
    differ = [not torch.equal(average[key], last[key]) for key in last]
    assert sum(differ) > len(differ) / 2
    # Training goes on from the last weights, with the average beside them.
    saved = found.methods["weight_average"]
    for key, value in average.items():
        torch.testing.assert_close(value.detach(), saved[key], rtol=0, atol=0, msg=key)
    first, again = (
        json.loads((found.folder / place / "coco_instances_results.json").read_text())
        for place in ("inference", "again/inference")
    )
    assert len(first) > 0
    assert first == again
