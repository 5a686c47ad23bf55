"""Fitted levels with proximal maps against torchao's `QuantOptimizer`, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from tr_det.core import QuantConfig, attach, quantize_model

STEPS = 30
CASES = {
    "lsbq": ({"own_signs": True}, lambda parq: (parq.quant.LSBQuantizer(), None)),
    "uniform": ({}, lambda parq: (parq.quant.UnifQuantizer(), None)),
    "ternary": ({"fitted_by": "max"}, lambda parq: (parq.quant.TernaryUnifQuantizer(), 0)),
}
PROX = {
    "hard": lambda parq: parq.optim.ProxHardQuant(),
    "parq": lambda parq: parq.optim.ProxPARQ(3, 24, steepness=10),
    "binary_relax": lambda parq: parq.optim.ProxBinaryRelax(3, 24),
}
OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=1e-2),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))


def loss(model, step):
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
    return model(x).square().mean() + model(x).sum() / 50


@pytest.fixture(scope="module")
def parq():
    """Return torchao's module, on one thread, so that sums agree to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield pytest.importorskip("torchao.prototype.parq")
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prox", PROX)
@pytest.mark.parametrize(
    ("name", "bits", "period", "per_channel", "kind"),
    [
        ("lsbq", 1, 1, True, "SGD"),
        ("lsbq", 2, 1, False, "AdamW"),
        ("lsbq", 4, 1, True, "SGD"),
        ("uniform", 1, 1, True, "AdamW"),
        ("uniform", 2, 1, True, "SGD"),
        ("uniform", 4, 3, False, "AdamW"),
        ("ternary", 2, 1, True, "AdamW"),
        ("ternary", 2, 3, False, "SGD"),
    ],
)
def test_weights_and_latents_are_torchaos_to_the_bit(
    parq, name, prox, kind, bits, period, per_channel
):
    options, make = CASES[name]
    ours, theirs = network(), network()
    their_quantizer, as_bits = make(parq)
    weights = [theirs[0].weight, theirs[3].weight]
    biases = [theirs[0].bias, theirs[3].bias]
    quantized = {"params": weights, "quant_bits": bits if as_bits is None else as_bits}
    base = OPTIMIZERS[kind]([quantized, {"params": biases}])
    their_optimizer = parq.optim.QuantOptimizer(
        base,
        their_quantizer,
        PROX[prox](parq),
        quant_period=period,
        quant_per_channel=per_channel,
    )

    options = options | {"prox": prox, "period": period, "per_channel": per_channel}
    options |= {} if prox == "hard" else {"start": 0.1, "end": 0.8}
    config = {"weight_quantizer": name, "weight_bits": bits, "weight_options": options}
    quantize_model(ours, QuantConfig(act_bits=32, **config))
    layers = [ours[0], ours[3]]
    optimizer = OPTIMIZERS[kind](
        [{"params": [m.weight for m in layers]}, {"params": [m.bias for m in layers]}]
    )
    attach([], ours, optimizer, STEPS)
    for layer in layers:
        layer.weight_quantizer.calibrate(layer.weight)
    for step in range(STEPS):
        their_optimizer.zero_grad()
        loss(theirs, step).backward()
        their_optimizer.step()
        optimizer.zero_grad()
        if step == 0:  # theirs takes its first gradient at the latent weights
            first = copy.deepcopy(ours)
            for layer in (first[0], first[3]):
                layer.weight_quantizer = None
            loss(first, 0).backward()
            for own, parameter in zip(ours.parameters(), first.parameters(), strict=False):
                own.grad = parameter.grad
        else:
            loss(ours, step).backward()
        optimizer.step()
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            assert torch.equal(layer.weight, their_optimizer.state[weight]["latent"]), step
            assert torch.equal(layer.quantized_weight(), weight), step
            assert torch.equal(layer.bias, bias), step
