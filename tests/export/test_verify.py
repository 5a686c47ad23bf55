"""What a proof must not miss."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from tr_det.core import QuantConfig, quantize_model, set_scales
from tr_det.export.backends import TorchBackend
from tr_det.export.fold import fold
from tr_det.export.trace import trace
from tr_det.export.verify import verify


class Net(nn.Module):
    """Its last layer's activation depends on the images' height."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.relu(x) if x.shape[2] > 10 else x)


@pytest.fixture
def backend():
    torch.manual_seed(0)
    net, images = Net(), torch.rand(2, 3, 16, 14)
    quantize_model(net, QuantConfig(output_scale="always", signed_input=True))
    set_scales(net, lambda: net(images))
    traced = trace(net.eval(), images)
    return TorchBackend(traced, fold(traced.graph))


class Changed:
    """A backend whose results are changed."""

    def __init__(self, backend, change) -> None:
        self.backend, self.change = backend, change

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def __call__(self, images):
        observed = self.backend(images)
        self.change(observed)
        return observed


def failures(backend, *batches):
    return verify(backend._graph, [backend], batches).failures()


def test_the_record_is_compared_with_the_model(backend) -> None:
    assert failures(backend, np.ones((1, 3, 20, 14), np.float32)) == []
    (line,) = failures(backend, np.ones((1, 3, 9, 14), np.float32))  # the other branch
    assert line.startswith("torch: ")


def test_no_images_are_no_proof(backend) -> None:
    assert len(failures(backend)) == 1


def nan_in_the_first_batch():
    batches = itertools.count()

    def change(observed) -> None:
        if next(batches) == 0:
            observed.outputs["output"][0, 0, 0, 0] = np.nan

    return change


def one_row_less(observed) -> None:
    observed.outputs["output"] = observed.outputs["output"][:, :, :1]


def one_code_for_all(observed) -> None:
    name = next(iter(observed.multiples))
    observed.multiples[name] = observed.multiples[name][:1, :1, :1, :1]


@pytest.mark.parametrize("change", [nan_in_the_first_batch(), one_row_less, one_code_for_all])
def test_results_that_cannot_be_compared_fail(backend, change) -> None:
    changed = Changed(backend, change)
    batch = np.zeros((1, 3, 16, 14), np.float32)  # whose codes are all the same
    proof = verify(backend._graph, [changed], [batch, batch])
    assert proof.failures()
