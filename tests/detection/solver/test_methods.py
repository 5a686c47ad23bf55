"""Quantizers and methods of the core, each by one change of a config, in our trainer and in
Detectron2's own train_net.py."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import train_net

from tests.detection.test_env import ENVIRONMENT, HERE, ROOT, tool
from tr_det.core import quantized_layers
from tr_det.core.quantizers import FREE
from tr_det.detection import QuantCheckpointer, QuantTrainer

WEIGHTS, INPUTS = "MODEL.QUANT.WEIGHT_QUANTIZER", "MODEL.QUANT.ACT_QUANTIZER"
PER_CHANNEL = ("MODEL.QUANT.WEIGHT_OPTIONS", ["per_channel=True"])
GUESTS = {
    "lsq": (WEIGHTS, "lsq", *PER_CHANNEL, INPUTS, "lsq"),
    "ewgs": (WEIGHTS, "ewgs"),
    "running_minmax": (INPUTS, "running_minmax"),
    "lsbq": (WEIGHTS, "lsbq"),
    "tracker": ("SOLVER.METHODS", ["tracker"]),
    "freezing": ("SOLVER.METHODS", ["freezing threshold=0.0015"]),
    "weight_average": ("SOLVER.METHODS", ["weight_average decay=0.9"]),
    "dampening": ("SOLVER.METHODS", ["dampening weight=0.5 weight_final=0.5"]),
    "bn_reestimation": ("SOLVER.METHODS", ["bn_reestimation batches=2"]),
    "scales": ("MODEL.QUANT.LEARN_WEIGHT_SCALE", True, "SOLVER.TR.SCALES", "sum"),
    "parq": (WEIGHTS, "lsbq", "MODEL.QUANT.WEIGHT_OPTIONS", ["prox=parq", "end=0.5"]),
}
ROUTES = ("QuantTrainer", "train_net.py")


def config_of(tiny, folder, guest):
    """Return the tiny config with one change; codes move a lot in it, and scales visibly."""
    cfg = tiny.tiny_config(folder, "SOLVER.SCALE_LR_FACTOR", 10.0, *GUESTS[guest])
    cfg.SOLVER.TR.FACTOR, cfg.SOLVER.TR.GAIN, cfg.SOLVER.MOMENTUM = 0.5, 1.0, 0.0
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    if guest not in ("weight_average", "bn_reestimation"):
        cfg.DATASETS.TEST = ()
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    return cfg


@pytest.fixture(scope="module")
def stock(tiny, scenes, tmp_path_factory):
    """Run all guests in Detectron2's train_net.py, the average again in an evaluation only."""
    parent = tmp_path_factory.mktemp("stock")
    configs = {guest: config_of(tiny, parent / guest, guest) for guest in GUESTS}
    commands = [["--config-file", str(parent / guest / "config.yaml")] for guest in GUESTS]
    average = parent / "weight_average"
    again = ["OUTPUT_DIR", f"{average}/again", "MODEL.WEIGHTS", f"{average}/model_averaged.pth"]
    commands.append(["--config-file", f"{average}/config.yaml", "--eval-only", *again])
    words = [tool("train_net.py"), str(scenes), json.dumps(commands)]
    done = subprocess.run(
        [sys.executable, HERE / "env_process.py", *words],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return configs


@pytest.fixture(scope="module")
def ours(tiny, scenes, tmp_path_factory):
    """Run all guests in our trainer, the average again in an evaluation only."""
    parent = tmp_path_factory.mktemp("ours")
    configs = {guest: config_of(tiny, parent / guest, guest) for guest in GUESTS}
    for cfg in configs.values():
        QuantTrainer(cfg).train()
    cfg = configs["weight_average"].clone()
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_averaged.pth"
    cfg.OUTPUT_DIR += "/again"
    train_net.evaluate(cfg, resume=False)
    return configs


@pytest.fixture(params=ROUTES)
def run(request):
    """Return ``run(guest)``: what a run of four iterations has left."""
    configs = request.getfixturevalue("ours" if request.param == "QuantTrainer" else "stock")

    def found(guest):
        cfg = configs[guest]

        def model(name="model_final"):
            loaded = QuantTrainer.build_model(cfg)
            QuantCheckpointer(loaded).load(f"{cfg.OUTPUT_DIR}/{name}.pth")
            return loaded

        def state(name="model_final"):
            return torch.load(f"{cfg.OUTPUT_DIR}/{name}.pth", weights_only=True)

        with open(f"{cfg.OUTPUT_DIR}/metrics.json") as file:
            last = json.loads(file.readlines()[-1])
        return SimpleNamespace(folder=cfg.OUTPUT_DIR, model=model, state=state, metrics=last)

    return found


def kinds(model, part):
    """Return the names of the quantizers of a part."""
    quantizers = [getattr(layer, f"{part}_quantizer") for _, layer in quantized_layers(model)]
    return {quantizer.identity().split()[0] for quantizer in quantizers}


def pairs(run):
    """Return the quantized layers after two iterations and at the end, by name."""
    early, late = (dict(quantized_layers(run.model(n))) for n in ("model_0000001", "model_final"))
    return {name: (early[name], layer) for name, layer in late.items()}


def test_lsq_with_a_scale_per_channel(run):
    found = run("lsq")
    model = found.model()
    assert kinds(model, "weight") == kinds(model, "input") == {"lsq"}
    layers = pairs(found)
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


def test_ewgs_weights_have_levels_at_odd_fifteenths(run):
    found = run("ewgs")
    model = found.model()
    assert (kinds(model, "weight"), kinds(model, "input")) == ({"ewgs"}, {"fixed_grid"})
    for name, layer in quantized_layers(model):
        fifteenths = layer.quantized_weight() * 15
        assert (fifteenths.round() % 2 == 1).all(), name
        assert (fifteenths - fifteenths.round()).abs().max() < 1e-4, name
    assert model.backbone.top_block.p6.output_scale is not None
    assert 0 < found.metrics["tr/rate"] < 1


def test_running_minmax_follows_every_update(run):
    found = run("running_minmax")
    model = found.model()
    assert (kinds(model, "weight"), kinds(model, "input")) == ({"fixed_grid"}, {"running_minmax"})
    for name, (early, late) in pairs(found).items():
        assert not torch.equal(late.input_quantizer.range, early.input_quantizer.range), name


def test_lsbqs_levels_are_those_of_the_last_weights(run):
    """Algorithm by hand: v_i is the mean magnitude of what the first i - 1 leave."""
    found = run("lsbq")
    model = found.model()
    assert (kinds(model, "weight"), kinds(model, "input")) == ({"lsbq"}, {"fixed_grid"})
    for name, layer in quantized_layers(model):
        rest = layer.weight.detach().double().flatten()
        for magnitude in layer.weight_quantizer.magnitudes:
            mean = rest.abs().mean()
            assert magnitude.item() == pytest.approx(mean.item(), rel=1e-4), name
            rest = rest - mean * torch.where(rest < 0, -1.0, 1.0)
    assert 0 < found.metrics["tr/rate"] < 1


def saved_methods(run):
    return run.state()["trainer"]["_trainer"]["optimizer"]["tr_det"]["methods"]


def test_the_tracker_counts_oscillations(run):
    found = run("tracker")
    tracks = saved_methods(found)["tracker"]
    assert tracks.keys() == {f"{name}.weight" for name, _ in quantized_layers(found.model())}
    frequencies = torch.cat([track["frequency"].flatten() for track in tracks.values()])
    assert frequencies.max() > 0
    assert found.metrics["tr/frequency"] == pytest.approx(frequencies.mean().item(), rel=1e-3)
    assert "tr/oscillating" in found.metrics
    assert found.metrics["tr/frozen"] == 0


def test_freezing_holds_what_oscillates(run):
    found = run("freezing")
    assert set(saved_methods(found)) == {"freezing", "tracker"}
    layers = pairs(found)
    held = {name: late.weight_quantizer.held for name, (_, late) in layers.items()}
    count = sum((codes != FREE).sum().item() for codes in held.values() if codes is not None)
    weights = sum(late.weight.numel() for _, late in layers.values())
    assert found.metrics["tr/frozen"] == pytest.approx(count / weights, rel=1e-4)
    assert count > 0
    for name, (_, late) in layers.items():
        if held[name] is not None:
            which = held[name] != FREE
            assert torch.equal(late.quantized_weight()[which], held[name][which] / 8), name


def test_dampening_is_at_work(run):
    assert run("dampening").metrics["tr/dampening"] == 0.5


def test_batch_norms_are_estimated_for_the_evaluation_only(run):
    found = run("bn_reestimation")
    kept, last = (found.model(name).state_dict() for name in ("model_averaged", "model_final"))
    statistics = [key for key in last if key.endswith(("running_mean", "running_var"))]
    assert statistics
    for key, value in last.items():
        assert (key in statistics) or torch.equal(kept[key], value), key
    differ = [key for key in statistics if not torch.equal(kept[key], last[key])]
    assert len(differ) > len(statistics) / 2


def test_trained_scales_are_told_apart_under_tr_scheduling(run):
    found = run("scales")
    moved = [
        not torch.equal(early.weight_quantizer.scale, late.weight_quantizer.scale)
        for early, late in pairs(found).values()
    ]
    assert sum(moved) > len(moved) / 2
    assert found.metrics["tr/by_scale"] > 0
    assert found.metrics["tr/scale_drift"] > 0


def test_parq_ends_at_the_levels(run):
    found = run("parq")
    for name, layer in quantized_layers(found.model().train()):
        assert len(layer.weight_quantizer.eval()(layer.weight).unique()) <= 16, name
    assert found.metrics["tr/by_scale"] > 0  # levels are refitted


def test_the_average_is_what_is_evaluated_and_kept(run):
    found = run("weight_average")
    average, last = (
        dict(found.model(name).named_parameters()) for name in ("model_averaged", "model_final")
    )
    differ = [not torch.equal(average[key], last[key]) for key in last]
    assert sum(differ) > len(differ) / 2
    # Training goes on from the last weights, with the average beside them.
    saved = saved_methods(found)["weight_average"]
    for key, value in average.items():
        torch.testing.assert_close(value.detach(), saved[key], rtol=0, atol=0, msg=key)
    first, again = (
        json.loads(Path(found.folder, place, "coco_instances_results.json").read_text())
        for place in ("inference", "again/inference")
    )
    assert len(first) > 0
    assert first == again
