"""A step asks the device for no value: counted as reads of a scalar, which block on a GPU."""

import pytest
import torch
from small_runs import NAMES, make_model, pair, torch_class, train
from torch.utils._python_dispatch import TorchDispatchMode

from tr_det.core import tr_param_groups, without_transition
from tr_det.core.ops import affine
from tr_det.core.optim import nonfinite


@pytest.fixture(autouse=True)
def quantize_as_on_any_device(monkeypatch):
    """Use the plain formula: the CPU's kernel reads the scale, which blocks nothing there."""
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


@pytest.fixture(autouse=True)
def _like_a_device(like_a_device, monkeypatch):
    """Skip reading the result of the NaN check, which a device delivers later."""
    monkeypatch.setattr(nonfinite, "_fetch", lambda answer: lambda: True)


def reads_in_a_step(model, optimizer):
    train(model, optimizer, range(2))  # constants are made in the first steps
    with ScalarReads() as reads:
        train(model, optimizer, [2])
    return reads.count


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduled_step_reads_no_more_scalars_than_the_torch_optimizer(name):
    model, optimizer = pair(name)
    plain = make_model()
    reference = torch_class(optimizer)(without_transition(tr_param_groups(plain, lr=0.01)))
    # torch's own reads are of its step counters, which live on the host.
    reads = reads_in_a_step(model, optimizer)
    assert reads == reads_in_a_step(plain, reference)
    assert reads == 0 or name != "SGDT"


def test_the_count_would_notice_a_read():
    with ScalarReads() as reads:
        torch.rand(1).item()
    assert reads.count == 1
