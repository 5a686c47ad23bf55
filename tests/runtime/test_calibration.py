import contextlib

import pytest
import torch
from torch import nn

from tr_det.core import ConfigError, QuantConfig, is_calibrated, quantize_model
from tr_det.runtime.calibration import calibrate, update_norms


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).eval()
    quantize_model(model, QuantConfig(weight_bits=2, act_bits=2))
    return model


@pytest.fixture
def batches():
    """Batches of different sizes and means."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((8, 0.2), (4, 2.0), (16, 0.7), (8, 50.0))
    return [torch.rand(size, 4, generator=generator) * scale for size, scale in sizes]


def test_scales_are_of_the_first_batch_and_statistics_of_all_elements_together(model, batches):
    entered = []

    @contextlib.contextmanager
    def around():
        entered.append(True)
        yield

    calibrate(model, batches, 3, around)
    assert is_calibrated(model)
    assert entered == [True]
    assert not model.training
    first = batches[0].double()
    scale = 3 * first.std() / (1 - 2 / torch.pi) ** 0.5
    torch.testing.assert_close(model[0].input_quantizer.scale.double(), scale, check_dtype=False)
    before = torch.cat([model[0](batch) for batch in batches[:3]]).detach().double()
    norm = model[1]
    torch.testing.assert_close(norm.running_mean.double(), before.mean(0))
    torch.testing.assert_close(norm.running_var.double(), before.var(0, correction=0))
    assert norm.momentum == 0.1


def test_statistics_alone_are_measured_anew(model, batches):
    calibrate(model, batches, 1)
    scale, mean = model[0].input_quantizer.scale.clone(), model[1].running_mean.clone()
    update_norms(model, batches, 2)
    assert torch.equal(model[0].input_quantizer.scale, scale)
    assert not torch.equal(model[1].running_mean, mean)


def test_no_batch_at_all_is_refused(model, batches):
    with pytest.raises(ConfigError, match="num_batches=0: must be at least 1"):
        calibrate(model, batches, 0)
