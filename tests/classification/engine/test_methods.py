"""Quantizers and methods by name, through whole runs of a config."""

from pathlib import Path

import pytest
import torch

from tr_det.classification.config.reading import load_config
from tr_det.classification.data.datasets import load_data
from tr_det.classification.engine.run import evaluate_only, run
from tr_det.classification.models.build import build_network
from tr_det.core import QUANTIZERS, quantized_layers
from tr_det.runtime.metrics import read_records

SGD = ["solver.optimizer", "SGD"]
FREEZING = "[tracker momentum=0.2, freezing threshold=0.25]"
CASES = {
    "SGDT": [],
    "AdamWT": ["solver.optimizer", "AdamWT"],
    "Adam": ["solver.optimizer", "Adam"],
    "lsq": [
        *SGD,
        *("quant.weight_quantizer", "lsq", "quant.act_quantizer", "lsq"),
        *("quant.weight_options", "{per_channel: true}"),
    ],
    "ewgs": [*SGD, "quant.weight_quantizer", "ewgs", "quant.act_quantizer", "ewgs"],
    "running_minmax": ["quant.act_quantizer", "running_minmax"],
    "lsbq": [*SGD, "quant.weight_quantizer", "lsbq", "quant.weight_options.period", "2"],
    "tracker": ["solver.methods", "[tracker]"],
    "freezing": ["solver.methods", FREEZING],
    "freezing with learned scales": [*SGD, "solver.methods", FREEZING],
    "weight_average": ["solver.methods", "[weight_average decay=0.9]"],
    "dampening and bn_reestimation": [
        "solver.methods",
        "[dampening weight=0.1 start=0.5, bn_reestimation batches=3]",
    ],
    "trained scales": ["tr.scales", "sum"],
    "parq": [*SGD, "quant.weight_quantizer", "uniform", "quant.weight_options.prox", "parq"],
    "qnet": [*SGD, "quant.weight_quantizer", "qnet", "quant.act_quantizer", "qnet"],
}


def qat(*overrides):
    return load_config("qat.yaml", ["model.pretraining", "", "solver.lr", "0.2", *overrides])


def average_of(folder):
    return torch.load(Path(folder) / "model_averaged.pth", weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_not_stopped(
    folder, name, same, final, stop_at
):
    config = qat(*CASES[name], "run.output_dir", "whole")
    whole = run(config)
    stop_at(config, "model_0000004.pth", "stopped")
    workers = ["data.workers", str(int(name == "SGDT"))]
    resumed = run(qat(*CASES[name], *workers, "run.output_dir", "stopped"), resume=True)
    first, second = final("whole"), final("stopped")
    for part in ("model", "optimizer", "scheduler", "iteration"):
        assert same(first[part], second[part]), part
    assert whole["metrics"] == resumed["metrics"]
    assert whole["tr"] == resumed["tr"]
    rows = [
        [{**line, "eta_seconds": 0} for line in read_records(Path(folder) / "metrics.json")]
        for folder in ("whole", "stopped")
    ]
    assert rows[0] == rows[1]
    assert rows[0][-1]["tr/distance"] > 0
    if name in QUANTIZERS:
        model = build_network(config, load_data(config.data), published=False)
        layer = next(layer for _, layer in quantized_layers(model))
        weight, act = config.quant.weight_quantizer, config.quant.act_quantizer
        assert type(layer.weight_quantizer) is QUANTIZERS[weight]
        assert type(layer.input_quantizer) is QUANTIZERS[act]
        assert layer.weight_quantizer.per_channel == (name == "lsq")
    if name.startswith("freezing"):
        assert any((value != -128).any() for key, value in first["model"].items() if "held" in key)
        assert 0 < rows[0][-1]["tr/frozen"] < 1
    if name == "weight_average":
        averages = average_of("whole"), average_of("stopped")
        assert same(averages[0]["model"], averages[1]["model"])
        assert not same(averages[0]["model"], first["model"])


def test_the_average_is_what_is_evaluated_saved_and_started_from(folder, same):
    average = ["solver.methods", "[weight_average decay=0.9]"]
    periods = ["run.eval_period", "3", "run.output_dir", "a"]
    results = run(qat(*average, *periods))
    again = evaluate_only(qat(*average, *periods))
    assert again["metrics"] == results["metrics"]
    assert again["paths"]["checkpoint"] == results["paths"]["checkpoint"] == "a/model_averaged.pth"
    assert again["updates"] == average_of("a")["iteration"] == 8
    named = ["model.weights", "a/model_averaged.pth", "run.output_dir", "b"]
    assert evaluate_only(qat(*named))["metrics"] == results["metrics"]
    latents = evaluate_only(qat(*named[:1], "a/model_final.pth", *named[2:]))
    assert latents["metrics"] != results["metrics"]

    (folder / "first.yaml").write_text(
        (folder / "fp.yaml").read_text() + "\nquant: {bits: W32A2}\n"
    )
    first = load_config("first.yaml", average)
    run(first)
    path = Path(first.run.output_dir)
    (folder / "first.yaml").write_text(
        (folder / "first.yaml")
        .read_text()
        .replace("0.05", "0.05, methods: [weight_average decay=0.9]")
    )
    started = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tr_det.classification.engine.trainer.ClassifierTrainer.train",
            lambda trainer: started.append(trainer.model.state_dict()) or {},
        )
        run(qat("model.pretraining", "first.yaml", "run.output_dir", "c"))
    kept = average_of(path)["model"]
    assert same({key: started[0][key] for key in kept}, kept)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quant.weight_quantizer", "lsqq"], r"quant\.weight_quantizer='lsqq': .*mean 'lsq'\?"),
        (["quant.weight_options.per_chanel", "1"], r"quant\.weight_options\.per_chanel=1: must be"),
        (["quant.weight_options.learn_scale", "true"], r"weight_options\.learn_scale=True: .*SGDT"),
        (
            [
                *("quant.act_quantizer", "pact", "quant.bits", "W2A1"),
                *("model.name", "reactnet18", "model.options", "{}"),
            ],
            r"units\.0\.conv.*: its input needs a signed grid, but bits=1: must be from 2 to 8",
        ),
        (["solver.methods", "[freezng]"], r"solver\.methods='freezng': .* mean 'freezing'\?"),
        (["solver.methods", "[freezing threshold=2]"], r"solver\.methods: threshold=2: must be in"),
        (
            ["solver.methods", "[tracker, tracker]"],
            r"solver\.methods='tracker': must be named once",
        ),
        (
            ["solver.methods", "[tracker]", *SGD, "quant.bits", "FP"],
            r"solver\.methods='tracker': must be left out",
        ),
        (["tr.warmup", "8"], r"tr\.warmup=8: must be"),
    ],
)
def test_a_mistake_about_a_quantizer_or_method_is_one_line_with_the_key(folder, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        run(qat(*overrides))
    assert "\n" not in str(error.value)
