import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from tr_det.core import SGDT, QuantConfig, attach, quantize_model, tr_param_groups
from tr_det.detection.solver.events import EventTelemetry


@pytest.mark.parametrize("scheduled", [True, False])
def test_curves_are_recorded_once_per_period_with_any_optimizer(scheduled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 6))
    quantize_model(model, QuantConfig(signed_input=True))
    if scheduled:
        optimizer = SGDT(tr_param_groups(model, lr=0.1), lr=0.1, total_steps=7, tr_factor=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach([EventTelemetry(3)], model, optimizer, 7)
    storage = EventStorage()
    for step in range(8):
        model(torch.randn(8, 6)).square().sum().backward()
        if step == 7:  # outside a training loop
            optimizer.step()
            break
        with storage:
            storage.iter = step
            optimizer.step()
        optimizer.zero_grad()
    keys = ["rate", "by_scale", "scale_drift", "step_size", "distance"]
    keys += ["target", "running", "talr"] * scheduled
    own = ["frozen", *["factor"] * scheduled]
    for key in keys:
        for name in (f"tr/{key}", f"tr_layers/0/{key}", f"tr_layers/3/{key}"):
            assert [step for _, step in storage.history(name).values()] == [2, 5], name
    assert {name.split("/")[-1] for name in storage.histories()} == {*keys, *own}
    assert any(value > 0 for value, _ in storage.history("tr/rate").values())
