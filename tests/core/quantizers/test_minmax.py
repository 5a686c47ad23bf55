"""Min-max of weights against its formula in float64."""

import numpy as np
import pytest
import torch
from quantizer_kit import check_refused, every_axis, other_dims, per_channel
from torch import nn

from tr_det.core import QuantConfig, attach, build_quantizer, quantize_model


@pytest.mark.parametrize("bits", [2, 3, 8])
@every_axis
@pytest.mark.parametrize("percentile", [100, 90])
def test_values_and_gradients(bits, axis, percentile):
    x = np.random.default_rng(bits).normal(size=(4, 5, 30)).astype(np.float32)
    options = per_channel(axis, x.shape)
    quantizer = build_quantizer("minmax", bits, True, percentile=percentile, **options)
    given = torch.tensor(x, requires_grad=True)
    quantizer.calibrate(given)
    wide = x.astype(np.float64)
    # The nearest rank of |w|.
    over = {"axis": other_dims(axis, 3), "keepdims": True}
    reach = np.quantile(np.abs(wide), percentile / 100, **over, method="inverted_cdf")
    int_max = 2 ** (bits - 1) - 1
    units = wide / (reach / int_max)
    code = np.clip(np.rint(units), -int_max - 1, int_max)
    clear = np.abs(units - np.floor(units) - 0.5) > 1e-4
    out = quantizer.eval()(given)
    np.testing.assert_allclose(
        out.detach().numpy()[clear], (code * reach / int_max)[clear], rtol=1e-5, atol=1e-6
    )
    out.backward(torch.ones_like(given))
    inside = (np.rint(units) >= -int_max - 1) & (np.rint(units) <= int_max)
    np.testing.assert_array_equal(given.grad.numpy()[clear], inside.astype(float)[clear])


def test_the_range_follows_the_weight():
    model = nn.Sequential(nn.Linear(3, 4))
    quantize_model(model, QuantConfig(weight_bits=3, act_bits=32, weight_quantizer="minmax"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    attach([], model, optimizer, 5)
    layer = model[0]
    for step in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        assert torch.equal(layer.weight_quantizer.reach, layer.weight.detach().abs().max()), step


def test_what_it_cannot_quantize_is_refused():
    check_refused("bits", "minmax", 1, True)
    check_refused("percentile", "minmax", 2, True, percentile=0)
    check_refused("role", "minmax", 2, True, role="input")
