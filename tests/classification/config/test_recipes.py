"""Every recipe has the values of Table S8, builds and trains."""

import dataclasses
import importlib.util
import itertools
import math
from pathlib import Path

import pytest
import torch

from tests.classification.given import given_data
from tr_det.classification.config.reading import load_config
from tr_det.classification.engine.losses import Distributional
from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.classification.models.registry import build_model, quantize_network
from tr_det.runtime.options import methods_from

CONFIGS = Path(__file__).resolve().parents[3] / "configs/classification"
FOUR = ("SGD", "SGDT", "Adam", "AdamT")
# Table S8, copied from the paper: epochs, learning rate of SGD's and Adam's family, weight decay,
# schedule, TR factor. The batch is 256 and m 0.99 throughout.
TABLE_S8 = {
    ("cifar10", "resnet20"): (400, 1e-1, 1e-3, 1e-4, "cosine", 5e-3, FOUR),
    ("cifar10", "reactnet18"): (200, 1e-1, 1e-3, 1e-4, "cosine", 5e-3, FOUR),
    ("cifar100", "resnet20"): (400, 1e-1, 1e-3, 1e-4, "cosine", 5e-3, FOUR),
    ("cifar100", "reactnet18"): (200, 1e-1, 1e-3, 1e-4, "cosine", 5e-3, FOUR),
    ("imagenet", "resnet18"): (120, 1e-2, 1e-4, 1e-4, "cosine", 1e-3, FOUR),
    ("imagenet", "reactnet18"): (120, 1e-1, 1e-3, 0.0, "linear", 5e-4, FOUR),
    ("imagenet", "mobilenet_v2"): (120, 1e-2, 1e-4, 2.5e-5, "cosine", 1e-3, FOUR),
    ("imagenet", "deit_t"): (300, None, 3e-4, 5e-2, "cosine", 1e-3, ("AdamW", "AdamWT")),
    ("imagenet", "deit_s"): (300, None, 3e-4, 5e-2, "cosine", 1e-3, ("AdamW", "AdamWT")),
}
ROWS = [(*key, optimizer) for key, row in TABLE_S8.items() for optimizer in row[-1]]
# The same networks at a size that trains in milliseconds; ResNet-18 has no such knob.
SMALL = {
    "resnet_cifar": {"depth": 8, "width": 4},
    "reactnet18": {"small_images": True, "width": 4},
    "mobilenet_v2": {"width_mult": 0.1},
    "deit_tiny": {"img_size": 32, "depth": 1},
    "deit_small": {"img_size": 32, "depth": 1},
}
IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "fashion_mnist": 60_000}
NO_TIMM = importlib.util.find_spec("timm") is None


@pytest.mark.parametrize(("dataset", "network", "optimizer"), ROWS)
def test_a_row_of_table_s8_is_a_recipe(dataset, network, optimizer):
    epochs, sgd_lr, adam_lr, decay, schedule, factor, _ = TABLE_S8[dataset, network]
    config = load_config(CONFIGS / dataset / f"{network}_{optimizer.lower()}.yaml")
    solver = config.solver
    assert config.data.name == dataset
    assert solver.optimizer == optimizer
    assert (solver.epochs, solver.iterations, solver.batch_size) == (epochs, 0, 256)
    assert solver.lr == (sgd_lr if optimizer.startswith("SGD") else adam_lr)
    assert (solver.weight_decay, solver.schedule, config.tr.schedule) == (decay, schedule, "")
    assert solver.scale_lr_factor == 0.1
    if optimizer.endswith("T"):
        assert (config.tr.factor, config.tr.momentum, config.tr.update) == (
            factor,
            0.99,
            "additive",
        )
    assert config.learn_weight_scale == (not optimizer.endswith("T"))


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("[a-z]*_*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_starts_from_weights_that_fit_and_is_checkpointed_on_the_way(path):
    config = load_config(path)
    if config.model.pretraining:
        first = load_config(config.model.pretraining)
        assert (first.model.name, first.model.options) == (config.model.name, config.model.options)
        assert first.data.name == config.data.name
        assert first.quant.bits == ("W32A1" if config.model.name == "reactnet18" else "FP")
    if config.data.name != "digits" and path.parent.name != "bases":
        images = IMAGES.get(config.data.name, 1_281_167)
        updates = config.solver.epochs * (images // config.solver.batch_size)
        for period in (config.run.checkpoint_period, config.run.eval_period):
            assert 0 < period <= updates / 10


OTHERS = ["mobilenet_v2_w3a3_freezing", "efficientnet_lite0_w4a4_dampening"]
OTHERS += ["deit_t_parq", "resnet20_parq"]


def small_runs():
    """Return recipes and bits: each network and optimizer of Table S8 once, and `OTHERS`.

    The bits alternate, so that each network with four optimizers has them all, as has each family.
    """
    rows = {f"{network}_{optimizer.lower()}": dataset for dataset, network, *_, optimizer in ROWS}
    found = [
        (CONFIGS / f"{dataset}/{row}.yaml", f"W{bits}A{bits}")
        for (row, dataset), bits in zip(rows.items(), itertools.cycle((1, 2, 4)), strict=False)
    ]
    found += [(next(CONFIGS.rglob(f"{name}.yaml")), "") for name in OTHERS]
    for path, bits in found:
        marks = []
        if path.stem.startswith(("deit", "efficientnet")):
            marks = [pytest.mark.skipif(NO_TIMM, reason="needs timm")]
        yield pytest.param(path, bits, id=f"{path.stem}-{bits}", marks=marks)


@pytest.mark.parametrize(("path", "bits"), list(small_runs()))
def test_a_recipe_trains_and_evaluates(path, bits, tmp_path):
    overrides = ["solver.epochs", "2", "solver.batch_size", "4", "run.output_dir", str(tmp_path)]
    overrides += ["data.workers", "0"]
    # On four images of 32 pixels the rate of other recipes lets a network of 224 pixels diverge.
    overrides += ["quant.bits", bits] if bits else ["solver.lr", "1e-4"]
    trainer = make_trainer(load_config(path, overrides))
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    batches = itertools.repeat(next(iter(torch.utils.data.DataLoader(trainer.data.train, 4))))
    for _ in range(2):
        scalars = trainer._step(batches, logged=True)
        assert math.isfinite(scalars["loss"])
    latents = list(trainer.attached.codes.weights())
    moved = [n for n in latents if not torch.equal(trainer.model.get_parameter(n), start[n])]
    assert latents
    assert moved == latents
    assert ("tr/talr" in scalars) == trainer.config.solver.scheduled
    if not bits:
        assert math.isfinite(trainer.evaluate()["loss"])


def make_trainer(config):
    """Return the trainer of a recipe with a small network and four images."""
    torch.manual_seed(0)
    pairs = [(torch.randn(3, 32, 32), label) for label in (0, 1, 2, 1)]
    data = given_data(pairs)
    small = SMALL.get(config.model.name, {})
    model = build_model(config.model.name, 3, **small)
    if config.model.name == "resnet18":
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            del stage[1]  # as much as can go without another forward
    quantize_network(model, config.model.name, config.quant.for_core(config.learn_weight_scale))
    loss = None
    if config.solver.loss == "distributional":
        loss = Distributional(build_model("resnet_cifar", 3, **SMALL["resnet_cifar"]))
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, options=small, pretraining="", weights="")
    )
    return ClassifierTrainer(config, model, data, loss)


# Recipes of Nagel et al., 2022: bits, method, epochs, learning rate, weight decay, last value of
# lambda or of the threshold.
OSCILLATION = {
    "mobilenet_v2_w4a4_dampening": (90, 0.0033, 2.5e-5, 0.1),
    "mobilenet_v2_w3a3_dampening": (90, 0.01, 2.5e-5, 0.1),
    "mobilenet_v2_w4a4_freezing": (90, 0.0033, 5e-5, 0.01),
    "mobilenet_v2_w3a3_freezing": (90, 0.01, 2.5e-5, 0.011),
    "efficientnet_lite0_w4a4_dampening": (50, 0.0033, 1e-4, 0.1),
    "efficientnet_lite0_w3a3_dampening": (50, 0.01, 5e-5, 0.1),
}


@pytest.mark.parametrize("name", OSCILLATION)
def test_a_recipe_of_the_oscillation_paper(name):
    epochs, lr, decay, last = OSCILLATION[name]
    config = load_config(CONFIGS / f"imagenet/{name}.yaml")
    solver, quant = config.solver, config.quant
    assert (solver.optimizer, solver.schedule, solver.batch_size) == ("SGD", "cosine", 128)
    assert (solver.epochs, solver.lr, solver.weight_decay) == (epochs, lr, decay)
    assert quant.bits == name.split("_")[-2].upper()
    for options in (quant.weight_options, quant.act_options):
        assert (options["estimator"], options["initial"]) == ("round", "mse")
    methods = {type(m).__name__: m for m in methods_from(solver.methods, "solver.methods")}
    assert methods["BNReestimation"].batches == 50
    if "dampening" in name:
        dampening = methods["Dampening"]
        assert (dampening.first, dampening.last, dampening.start) == (0.0, last, 0.25)
    else:
        freezing = methods["Freezing"]
        assert (methods["Tracker"].momentum, freezing.start) == (0.001, 0.25)
        assert freezing.thresholds == {"threshold": 0.1, "threshold_final": last}
