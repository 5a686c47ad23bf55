"""Fitted levels with proximal maps against torchao's `QuantOptimizer`, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from tr_det.core import QuantConfig, attach, quantize_model

STEPS = 30
CASES = {
    "lsbq": ("lsbq", {"own_signs": True}, lambda parq: (parq.quant.LSBQuantizer(), None)),
    "uniform": ("uniform", {}, lambda parq: (parq.quant.UnifQuantizer(), None)),
    "ternary": (
        "ternary",
        {"fitted_by": "max"},
        lambda parq: (parq.quant.TernaryUnifQuantizer(), 0),
    ),
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


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def parq():
    pytest.importorskip("torchao")
    import torchao.prototype.parq as parq

    return parq


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("prox", PROX)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    ("bits", "period", "per_channel"), [(2, 1, True), (2, 3, False), (1, 1, True), (4, 3, True)]
)
def test_weights_and_latents_are_torchaos_to_the_bit(
    parq, name, prox, kind, bits, period, per_channel
):
    quantizer, options, make = CASES[name]
    if name == "ternary" and bits != 2:
        pytest.skip("ternary weights have two bits")
    theirs = network()
    with torch.no_grad():
        start = copy.deepcopy(theirs)
    their_quantizer, as_bits = make(parq)
    weights = [theirs[0].weight, theirs[3].weight]
    biases = [theirs[0].bias, theirs[3].bias]
    base = OPTIMIZERS[kind](
        [
            {"params": weights, "quant_bits": bits if as_bits is None else as_bits},
            {"params": biases},
        ]
    )
    their_optimizer = parq.optim.QuantOptimizer(
        base,
        their_quantizer,
        PROX[prox](parq),
        quant_period=period,
        quant_per_channel=per_channel,
    )

    ours = start
    settings = {"prox": prox, "start": 0.1, "end": 0.8} | options
    settings |= {"period": period, "per_channel": per_channel}
    quantize_model(
        ours,
        QuantConfig(
            weight_bits=bits, act_bits=32, weight_quantizer=quantizer, weight_options=settings
        ),
    )
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
            first = copy.deepcopy(start)
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
