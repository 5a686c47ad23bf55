"""`dequantize_model`: ordinary layers that compute what the quantized ones did."""

import pytest
import torch
from torch import nn

from tr_det.core import QuantConfig, dequantize_model, quantize_model, set_scales


def network():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    second = nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*first, *second, nn.Linear(8 * 16, 4))


def trained(weight_bits, act_bits):
    model = network()
    quantize_model(model, QuantConfig(weight_bits=weight_bits, act_bits=act_bits))
    x = torch.rand(16, 3, 8, 8)
    set_scales(model, lambda: model(x))
    for _ in range(50):  # running statistics
        model(x)
    return model.eval(), x


@pytest.mark.parametrize(("weight_bits", "act_bits", "most"), [(2, 32, 1e-4), (8, 8, 0.05)])
def test_outputs_differ_by_the_rounding_of_inputs(weight_bits, act_bits, most):
    model, x = trained(weight_bits, act_bits)
    with torch.no_grad():
        expected = model(x)
        assert dequantize_model(model) == 3
        difference = (model(x) - expected).abs().mean() / expected.abs().mean()
    assert (0 if act_bits < 32 else -1) < difference < most


def test_the_model_is_the_one_before_quantization_but_for_its_weights():
    model, _ = trained(2, 4)
    dequantize_model(model)
    plain = network()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    # Two bits: each layer's weight has at most four values.
    for index in (0, 3, 6):
        assert len(model[index].weight.unique()) <= 4 < len(plain[index].weight.unique())


def test_scales_must_have_been_set():
    model = network()
    quantize_model(model, QuantConfig())
    with pytest.raises(RuntimeError, match=r"0\.weight_quantizer: no scale yet"):
        dequantize_model(model)
    assert type(model[0]) is not nn.Conv2d  # nothing was replaced
