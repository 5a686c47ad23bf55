import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from tr_det.core import SGDT, QuantConfig, attach, quantize_model, tr_param_groups
from tr_det.detection.solver.events import EventTelemetry


def train(period, steps, scheduled=True, in_storage=True):
    """Return the storage of a small run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 6))
    quantize_model(model, QuantConfig(signed_input=True))
    groups = tr_param_groups(model, lr=0.1)
    if scheduled:
        optimizer = SGDT(groups, lr=0.1, total_steps=steps, tr_factor=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach([EventTelemetry(period)], model, optimizer, steps)
    storage = EventStorage()
    for step in range(steps):
        model(torch.randn(8, 6)).square().sum().backward()
        if in_storage:
            with storage:
                storage.iter = step
                optimizer.step()
        else:
            optimizer.step()
        optimizer.zero_grad()
    return storage


@pytest.mark.parametrize("scheduled", [True, False])
def test_curves_are_recorded_once_per_period_with_any_optimizer(scheduled):
    storage = train(3, 7, scheduled)
    keys = ["rate", "by_scale", "scale_drift", "step_size", "distance"]
    keys += ["target", "running", "talr"] * scheduled
    for key in keys:
        for name in (f"tr/{key}", f"tr_layers/0/{key}", f"tr_layers/3/{key}"):
            assert [step for _, step in storage.history(name).values()] == [2, 5], name
    assert {name.split("/")[-1] for name in storage.histories()} == {*keys, "frozen"}
    assert any(value > 0 for value, _ in storage.history("tr/rate").values())


def test_means_are_over_layers():
    storage = train(1, 4)
    for key in ("rate", "talr", "target"):
        mean, first, last = (
            storage.history(name).latest()
            for name in (f"tr/{key}", f"tr_layers/0/{key}", f"tr_layers/3/{key}")
        )
        assert mean == pytest.approx((first + last) / 2)


def test_outside_a_training_loop_nothing_happens():
    assert not train(1, 3, in_storage=False).histories()


def test_a_model_without_quantized_weights_records_nothing():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach([EventTelemetry(1)], model, optimizer, 1)
    with EventStorage() as storage:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert not storage.histories()
