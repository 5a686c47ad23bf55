"""The running range against a float64 one: what counts as an observation, and what does not."""

from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from quantizer_kit import build, check_refused
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tr_det.core import ConfigError, QuantConfig, attach, quantize_model

LSQ = {"scale": 0.3}


def network(signed, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6))
    config = QuantConfig(
        weight_quantizer="lsq",
        act_quantizer="running_minmax",
        act_options=options,
        signed_input=signed,
    )
    quantize_model(model, config)
    return model


def start(signed, **options):
    model = network(signed, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attach([], model, optimizer, 50)
    return model, optimizer, model[0].input_quantizer


def batch(step, signed, part=0):
    x = np.random.default_rng([step, part]).normal(0.2, 1 + step % 5, (8, 6))
    return torch.tensor(x if signed else np.maximum(x, 0.01 * (step % 3)), dtype=torch.float32)


def scale_of(low, high, signed):
    """Return the scale of 4 bits."""
    return max(-low, high, 1e-8) / 7 if signed else max(high, 1e-8) / 15


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_one_observation_is_an_update_with_all_its_training_forwards(signed, momentum):
    model, optimizer, quantizer = start(signed, momentum=momentum)
    low = high = None
    for step in range(50):
        parts = [batch(step, signed, part) for part in range(1 + step % 3)]
        optimizer.zero_grad()
        for x in parts:
            model(x).sum().backward()
        model.eval()  # evaluation observes nothing, with or without gradients
        model(1000 * batch(step, signed, 9))
        model.train()
        with torch.no_grad():
            model(2000 * batch(step, signed, 9))
        if step == 0:  # calibrated by the first forward
            low, high = parts[0].double().min().item(), parts[0].double().max().item()
        assert quantizer.rounding().step.item() == pytest.approx(scale_of(low, high, signed))
        optimizer.step()
        everything = torch.cat(parts).double()
        low += momentum * (everything.min().item() - low)
        high += momentum * (everything.max().item() - high)
        assert quantizer.range.tolist() == pytest.approx([-low, high], rel=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_gives_the_same_numbers_and_counts_once(reentrant):
    runs = []
    for recompute in (False, True):
        model, optimizer, quantizer = start(True)
        model(batch(0, True)).sum().backward()  # the scale is set by a plain forward in both
        gradients = []
        for step in range(5):
            optimizer.zero_grad()
            x = batch(step, True).requires_grad_()
            out = checkpoint(model, x, use_reentrant=reentrant) if recompute else model(x)
            out.square().sum().backward()
            gradients += [x.grad, model[0].weight.grad]
            optimizer.step()
        runs.append([*gradients, quantizer.range])
    for plain, recomputed in zip(*runs, strict=True):
        assert torch.equal(plain, recomputed)


def test_a_forward_that_overflowed_is_no_observation():
    """A GradScaler leaves such a step out, but the forward has been seen."""
    model, optimizer, quantizer = start(True)
    for step, peak in enumerate((1.0, float("inf"), float("nan"), 1.0)):
        optimizer.zero_grad()
        x = batch(step, True)
        x[0, 0] *= peak
        model(x).sum().backward()
        if np.isfinite(peak):
            optimizer.step()
    assert torch.isfinite(quantizer.range).all()


def test_what_it_cannot_quantize_is_refused():
    check_refused("bits", "running_minmax", 1, True, role="input")
    check_refused("momentum", "running_minmax", 4, True, role="input", momentum=0.0)
    with pytest.raises(ConfigError):
        QuantConfig(weight_quantizer="running_minmax")


@pytest.mark.parametrize(
    ("quantizer", "ds"),
    [
        (build("running_minmax", 3, True, {"range": [0.9, 0.6]}, role="input"), None),
        (build("lsq", 3, True, LSQ, estimator="round", gradient_scale=False), 67.96667),
        (build("lsq", 3, True, LSQ, estimator="round"), 10.88338),
    ],
)
def test_the_gradient_passes_where_the_rounded_value_is_in_the_range(quantizer, ds):
    """Nagel et al.'s symmetric quantizer with three bits and s = 0.3: rounding before clamping."""
    x = torch.tensor([-1.6, -1.36, -1.34, -0.9, -0.43, -0.13, 0, 0.17, 0.44, 0.76, 1.04, 1.06, 2])
    out = quantizer(x.requires_grad_())
    out.backward(torch.arange(1.0, 14.0))
    value = [-1.2, -1.2, -1.2, -0.9, -0.3, 0, 0, 0.3, 0.3, 0.9, 0.9, 0.9, 0.9]
    torch.testing.assert_close(out.detach(), torch.tensor(value))
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 0]
    assert ds is None or quantizer.scale.grad.item() == pytest.approx(ds, rel=1e-6)


class _Branches(nn.Module):
    """The second layer runs only now and then, and not in both processes at the same updates."""

    def __init__(self):
        super().__init__()
        self.always, self.seldom = network(True), network(True)

    def forward(self, x, both):
        out = self.always(x)
        return out + self.seldom(x) if both else out


def _worker(rank, folder):
    dist.init_process_group(
        "gloo", f"file://{folder}/meeting", timedelta(seconds=60), rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    model = _Branches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attach([], model, optimizer, 12)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    model.seldom[0].input_quantizer.range.copy_(torch.ones(2))
    model.seldom[0].weight_quantizer.calibrate(model.seldom[0].weight)
    for step in range(12):
        optimizer.zero_grad()
        wrapped(batch(step, True, rank), both=(step + rank) % 3 == 2).sum().backward()
        optimizer.step()
    ranges = [branch[0].input_quantizer.range for branch in (model.always, model.seldom)]
    torch.save(ranges, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_share_the_range_over_the_data_of_both(run_in_new, tmp_path):
    run_in_new(2, _worker, str(tmp_path))
    ours, theirs = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    expected = np.array([[np.nan, np.nan], [1.0, 1.0]])  # rows: always, seldom
    for step in range(12):
        data = [batch(step, True, rank).double().numpy() for rank in (0, 1)]
        runs = [x for rank, x in enumerate(data) if (step + rank) % 3 == 2]
        for row, parts in enumerate((data, runs)):
            if parts:
                seen = np.array([max(-x.min() for x in parts), max(x.max() for x in parts)])
                first = step == 0 and row == 0
                expected[row] = seen if first else expected[row] + 0.1 * (seen - expected[row])
    for row, first, second in zip(expected, ours, theirs, strict=True):
        assert torch.equal(first, second)
        np.testing.assert_allclose(first.numpy(), row, rtol=1e-5)
