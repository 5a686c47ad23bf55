"""`set_scales`: all scales from one forward, and nothing else."""

import copy
import logging
import os
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tr_det.core import (
    QUANTIZERS,
    ConfigError,
    QuantConfig,
    attach,
    is_calibrated,
    quantize_model,
    quantized_layers,
    set_scales,
)
from tr_det.core.quantizers import Calibrated

WEIGHTS, INPUTS = (
    [name for name, cls in sorted(QUANTIZERS.items()) if role in cls.roles]
    for role in ("weight", "input")
)
PAIRS = [
    (WEIGHTS[i % len(WEIGHTS)], INPUTS[i % len(INPUTS)])
    for i in range(max(len(WEIGHTS), len(INPUTS)))
]
every_pair = pytest.mark.parametrize(("weight", "act"), PAIRS)


class Network(nn.Module):
    """Batch norm, dropout and a plain number, such as a detector's loss normalizer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)
        )
        self.head = nn.Linear(8, 4)
        self.normalizer = 100.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x).mean((2, 3))
        self.normalizer = 0.9 * self.normalizer + 0.1 * features.sum().item()
        self.seen = len(x)
        return self.head(features)


def network(weight="fixed_grid", act="fixed_grid", **options) -> Network:
    torch.manual_seed(0)
    model = Network()
    try:
        config = QuantConfig(weight_quantizer=weight, act_quantizer=act, **options)
    except ConfigError:  # it has two bits only
        config = QuantConfig(weight_quantizer=weight, act_quantizer=act, weight_bits=2, **options)
    quantize_model(model, config)
    return model


def batch(seed: int, size: int = 4) -> torch.Tensor:
    return torch.rand(size, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, first: int, batch: Callable = batch) -> dict:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attach([], model, optimizer, 4)
    wrapped = DistributedDataParallel(model)
    for step in range(4):
        optimizer.zero_grad()
        wrapped(batch(first + step)).square().mean().backward()
        optimizer.step()
    return model.state_dict()


def assert_same(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


@every_pair
@pytest.mark.parametrize("training", [True, False])
def test_nothing_but_scales_is_changed(weight, act, training) -> None:
    model = network(weight, act).train(training)
    scales = {id(t) for m in model.modules() if isinstance(m, Calibrated) for t in m.own_tensors()}
    kept = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in scales]
    before, random = [t.clone() for t in kept], torch.get_rng_state()
    assert not is_calibrated(model)
    set_scales(model, lambda: model(batch(0)))
    assert is_calibrated(model)
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert model.normalizer == 100.0
    assert not hasattr(model, "seen")
    assert all(p.grad is None for p in model.parameters())
    first = copy.deepcopy(model.state_dict())
    set_scales(model, lambda: model(batch(1)))
    assert_same(model.state_dict(), first)


@every_pair
def test_layers_are_calibrated_on_inputs_that_are_quantized_already(weight, act) -> None:
    """By hand, each on the output of the quantized layers before it."""
    model, twin = network(weight, act), network(weight, act)
    inputs = []
    for _, layer in quantized_layers(model):
        layer.register_forward_pre_hook(lambda layer, args: inputs.append(args[0]))
    set_scales(model, lambda: model(batch(0)))
    inputs = inputs[2:]  # the first two are of the forward that looks at signs
    for (_, layer), x in zip(quantized_layers(twin), inputs, strict=True):
        layer.weight_quantizer.calibrate(layer.weight)
        layer.input_quantizer.calibrate(x)
        if layer.output_scale is not None:
            with torch.no_grad():
                x_q, w_q = layer.input_quantizer(x), layer.weight_quantizer(layer.weight)
                ratio = (x @ layer.weight.T).abs().mean() / (x_q @ w_q.T).abs().mean()
            torch.testing.assert_close(model.head.output_scale.scale.detach(), ratio)
            twin.head.output_scale = model.head.output_scale
    assert_same(model.state_dict(), twin.state_dict())


def test_evaluation_sets_nothing() -> None:
    model = network()
    attach([], model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    for mode in (model.eval(), network(), network().eval()):
        with pytest.raises(RuntimeError, match=r"^body\.1\.weight_quantizer: no scale yet"):
            mode(batch(0))
        assert not any(m.is_calibrated for m in mode.modules() if isinstance(m, Calibrated))


def test_a_layer_without_data_is_calibrated_by_its_first_input(caplog) -> None:
    """A detector's second stage without proposals is an example."""
    model, whole = network(), network()
    model.forward = lambda x: model.head(nn.functional.relu(x))
    features = torch.rand(5, 8)
    with caplog.at_level(logging.WARNING):
        set_scales(model, lambda: model.forward(features[:0]))
    assert "2 layers had no input" in caplog.text
    assert "body.1, head" in caplog.text
    assert not is_calibrated(model)
    assert model.head.weight_quantizer.is_calibrated
    assert model.head(features[:0]).shape == (0, 4)
    assert not model.head.input_quantizer.is_calibrated
    out = model.head(features)
    set_scales(whole.head, lambda: whole.head(features))
    assert_same(model.head.state_dict(), whole.head.state_dict())
    assert torch.equal(out, whole.head(features))


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model = network(signed_input=False)
    before = model.body[2].running_mean.clone()
    with pytest.raises(ValueError, match=r"^head\.input_quantizer: .*negative values"):
        set_scales(model, lambda: (model.body(batch(0)), model.head(-torch.ones(2, 8))))
    assert torch.equal(model.body[2].running_mean, before)
    assert not model.head._forward_pre_hooks
    set_scales(model, lambda: model(batch(0)))
    assert is_calibrated(model)


@every_pair
def test_models_are_built_without_memory_and_loaded(weight, act) -> None:
    source = network(weight, act)
    full = {key: value for key, value in Network().state_dict().items() if "num_batches" not in key}
    set_scales(source, lambda: source(batch(0)))
    with torch.device("meta"):
        assigned, emptied, fresh = (network(weight, act) for _ in range(3))
    assigned.load_state_dict(source.state_dict(), assign=True)
    emptied.to_empty(device="cpu").load_state_dict(source.state_dict())
    for model in (assigned, emptied):
        assert is_calibrated(model)
        assert torch.equal(model.eval()(batch(1)), source.eval()(batch(1)))
    fresh.to_empty(device="cpu").load_state_dict(full, strict=False)
    parts = [m for m in fresh.modules() if isinstance(m, Calibrated)]
    assert not any(part.is_calibrated for part in parts)
    assert all(tensor.isnan().all() for part in parts for tensor in part.own_tensors())


def worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    for weight, act in PAIRS:
        model = network(weight, act)
        torch.manual_seed(rank)
        data = batch(100 + rank, 3 + rank)  # each process has its own, of another size
        set_scales(model, lambda model=model, data=data: model(data))
        found[f"{weight} {act}"] = model.state_dict()
        trained = train(network(weight, act), first=100 * rank)
        # Each process has the batch norm of its own last batch.
        found[f"{weight} {act}, trained"] = {
            key: value for key, value in trained.items() if "running_" not in key
        }
    for act in INPUTS:
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        quantize_model(model, QuantConfig(act_quantizer=act))
        # The second process alone sees negative values.
        data = lambda seed: batch(seed, 1)[0, 0, :, :6] - rank / 2  # noqa: E731
        if act == "qnet":
            with pytest.raises(ValueError, match="set signed_input for this layer by a rule"):
                train(model, 100 * rank, data)
            continue
        found[f"{act}, signs"] = train(model, 100 * rank, data)
        signs = [layer.input_quantizer.signed for _, layer in quantized_layers(model)]
        assert signs == [True, False]
    torch.save(found, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_processes_agree_bit_for_bit_and_train_with_ddps_defaults(run_in_new, tmp_path) -> None:
    port = 20_000 + (os.getpid() + 777) % 20_000
    run_in_new(2, worker, port, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    for key, state in first.items():
        assert_same(state, second[key])
        assert all(torch.isfinite(value).all() for value in state.values()), key
    alone = network()
    set_scales(alone, lambda: alone(batch(100, 3)))
    scale = "body.1.input_quantizer.scale"  # of both processes' data
    assert not torch.equal(alone.state_dict()[scale], first["fixed_grid fixed_grid"][scale])
