"""TorchScript stores operations, not Python functions: what it saves must run as the model does."""

import io

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tr_det.core import QUANTIZERS, QuantConfig, quantize_model, quantized_layers, set_scales

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor:torch.jit.TracerWarning"),
]


def network(name, example, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    roles = {"weight": "weight_quantizer", "input": "act_quantizer"}
    named = {key: name for role, key in roles.items() if role in QUANTIZERS[name].roles}
    quantize_model(model, QuantConfig(weight_bits=2, act_bits=3, **named, **options))
    for module in model.modules():
        module.attached = True
    set_scales(model, lambda: model(example))
    return model


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
@pytest.mark.parametrize("training", [False, True])
def test_a_saved_trace_gives_the_models_numbers(name, training):
    """The weights' scales are per channel; the graph is of the model's mode."""
    example, others = torch.rand(2, 3, 8, 8), torch.rand(3, 3, 9, 12)
    model = network(
        name,
        example,
        weight_options={"per_channel": True} if "weight" in QUANTIZERS[name].roles else {},
        signed_input=name not in ("lsq", "qnet"),
        learn_weight_scale=True,
        output_scale="always",
        recompute_inputs=True,
    ).train(training)
    torch.jit.save(torch.jit.trace(model, example), saved := io.BytesIO())
    saved.seek(0)
    loaded = torch.jit.load(saved)
    with torch.jit.optimized_execution(False):
        for images in (example, others):
            assert torch.equal(loaded(images), model(images))
    model(example).square().sum().backward()  # tracing has changed nothing
    assert all(layer.weight.grad.any() for _, layer in quantized_layers(model))


def test_counters_and_torch_export_see_the_convolutions():
    example = torch.rand(2, 3, 8, 8)
    model = network("fixed_grid", example).eval()
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    counts = []
    for each in (model, plain):
        with FlopCounterMode(display=False) as counter:
            each(example)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    program = torch.export.export(model, (example,), strict=False)
    assert torch.equal(program.module()(example), model(example))
