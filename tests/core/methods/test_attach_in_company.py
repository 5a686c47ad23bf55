"""`attach` beside what training loops bring along: DistributedDataParallel, autocast, wrappers."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tr_det.core import (
    QuantConfig,
    QuantRule,
    attach,
    is_calibrated,
    quantize_model,
    set_scales,
)


def start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4))
    quantize_model(model, QuantConfig(rules=(QuantRule(pattern="0", skip=True),)))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def batch(step):
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step))


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("first", ["attach", "DistributedDataParallel"])
def test_before_or_after_distributed_data_parallel(first, one_process):
    runs = []
    for parallel in (False, True):
        model, optimizer = start()
        if parallel and first == "DistributedDataParallel":
            model = DistributedDataParallel(model)
        attached = attach(["tracker", "weight_average"], model, optimizer, 4)
        if parallel and first == "attach":
            model = DistributedDataParallel(model)
        for step in range(4):
            optimizer.zero_grad()
            model(batch(step)).square().mean().backward()
            optimizer.step()
        assert attached.step == 4
        average, tracker = attached.methods[1].average, attached.methods[0].tracks
        runs.append(
            [*attached.model.parameters(), *average.values(), tracker["3.weight"].frequency]
        )
    for alone, wrapped in zip(*runs, strict=True):
        assert torch.equal(alone, wrapped)


def test_calibration_within_autocast_leaves_every_gradient():
    """Autocast keeps the casts of a forward; those of the calibrating one have no gradient."""
    gradients = []
    for by_attach in (True, False):
        model, optimizer = start()
        if by_attach:
            attach([], model, optimizer, 1)
        else:
            with torch.autocast("cpu", torch.bfloat16):
                set_scales(model, lambda: model(batch(0)))  # noqa: B023
        with torch.autocast("cpu", torch.bfloat16):
            value = model(batch(0)).square().mean()
        value.backward()
        assert is_calibrated(model)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, grad in gradients[0].items():
        assert torch.equal(grad, gradients[1][name]), name


def test_a_wrapper_may_pass_no_closure_by_position():
    """As accelerate's optimizers do."""
    model, optimizer = start()
    attached = attach(
        ["tracker"], model, optimizer, 1, clip=lambda given: nn.utils.clip_grad_norm_(given, 1.0)
    )
    model(batch(0)).sum().backward()
    optimizer.step(None)
    assert attached.step == 1
