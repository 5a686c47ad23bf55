"""A step asks the device for no value: counted as reads of a scalar, which block on a GPU."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tr_det import core
from tr_det.core import (
    QuantConfig,
    quantize_model,
    set_scales,
    tr_param_groups,
    without_transition,
)
from tr_det.core.ops import affine
from tr_det.core.optim import nonfinite


@pytest.fixture(autouse=True)
def quantize_as_on_any_device(monkeypatch):
    """Leave out the CPU's own backward: it reads the scale, which blocks nothing there."""
    plain = (affine.quantize_plain, affine.gradients_plain)
    monkeypatch.setattr(affine, "_implementation", lambda x, scale: plain)


class ScalarReads(TorchDispatchMode):
    """Counts operators that bring a value from the device to the host."""

    blocking = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in self.blocking
        return func(*args, **(kwargs or {}))


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    model(torch.rand(1, 3, 8, 8))
    quantize_model(model, QuantConfig(signed_input=True))
    set_scales(model, lambda: model(torch.rand(2, 3, 8, 8)))
    return model


@pytest.fixture(autouse=True)
def _like_a_device(like_a_device, monkeypatch):
    """The look for NaN has its answer under way; here it would be read."""
    monkeypatch.setattr(nonfinite, "_fetch", lambda answer: lambda: True)


def reads_in_steps(model, optimizer):
    x = torch.rand(2, 3, 8, 8)
    for _ in range(2):  # constants are made in the first steps
        model(x).sum().backward()
        optimizer.step()
    with ScalarReads() as reads:
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
    return reads.count


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "NAdam", "Adamax", "RMSprop", "Adagrad"])
def test_a_scheduled_step_reads_no_more_scalars_than_the_torch_optimizer(name):
    plain, scheduled = network(), network()
    theirs = getattr(torch.optim, name)(without_transition(tr_param_groups(plain, lr=0.01)))
    ours = getattr(core, f"{name}T")(tr_param_groups(scheduled, lr=0.01), lr=0.01, total_steps=9)
    # torch's own reads are of its step counters, which live on the host.
    assert reads_in_steps(scheduled, ours) == reads_in_steps(plain, theirs)


def test_the_count_would_notice_a_read():
    with ScalarReads() as reads:
        torch.rand(1).item()
    assert reads.count == 1


def test_sgdt_reads_none_at_all():
    model = network()
    optimizer = core.SGDT(tr_param_groups(model, lr=0.01), lr=0.01, momentum=0.9, total_steps=9)
    assert reads_in_steps(model, optimizer) == 0
