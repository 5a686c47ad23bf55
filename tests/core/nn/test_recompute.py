"""Recomputed inputs: the same numbers to the bit, activations stored once, safe in odd places."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tr_det.core import (
    QuantConfig,
    QuantRule,
    quantize_model,
    quantized_weights_once,
    set_scales,
)


def network(**options) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(2)),
        *(nn.Linear(4, 4), nn.ReLU(), nn.Flatten()),  # 3-d input: matrix products see a view of it
        nn.Linear(32, 5),
    )
    quantize_model(model, QuantConfig(**options))
    set_scales(model, lambda: model(images()))
    return model


def images():
    return torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def twins(**options):
    plain = network(**options)
    recomputing = network(recompute_inputs=True, **options)
    recomputing.load_state_dict(plain.state_dict())
    return plain, recomputing


def stored_bytes(model, x) -> int:
    """Return the bytes that stay allocated after a forward pass, by the profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        loss = model(x).sum()
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_losses_and_gradients_are_bit_identical(channels_last, autocast, checkpointed):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    results = []
    for model in twins(learn_weight_scale=True):
        x = images().to(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if checkpointed:
                loss = checkpoint(model, x, use_reentrant=False).square().sum()
            else:
                with quantized_weights_once():
                    loss = model(x).square().sum()
        loss.backward()
        results.append([loss.detach(), x.grad, *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_activations_are_stored_once() -> None:
    """Full precision stores x of each ReLU and conv; so does this network, plus its weights."""

    def stack():
        torch.manual_seed(0)
        layers = [[nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()] for _ in range(4)]
        return nn.Sequential(*(layer for pair in layers for layer in pair))

    x = torch.rand(4, 8, 32, 32)
    full, plain, recomputing = stack(), stack(), stack()
    quantize_model(plain, QuantConfig())
    quantize_model(recomputing, QuantConfig(recompute_inputs=True))
    for model in (plain, recomputing):
        set_scales(model, lambda model=model: model(x))
    base, activation = stored_bytes(full, x), x.numel() * 4
    assert stored_bytes(plain, x) >= base + 4 * activation
    assert stored_bytes(recomputing, x) < base + 0.2 * activation


def test_tensors_changed_before_backward_are_an_error() -> None:
    _, model = twins()
    x = images()
    loss = model(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    rule = QuantRule(pattern="*", output_scale=False)
    model = network(weight_bits=32, recompute_inputs=True, rules=(rule,))
    loss = model(images()).sum()
    with torch.no_grad():
        model[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_graph_may_be_walked_twice_and_models_copied() -> None:
    _, model = twins()
    calls = []
    model[2].input_quantizer.register_forward_hook(lambda *_: calls.append(1))
    with quantized_weights_once():
        loss = copy.deepcopy(model)(images()).sum() + model(images()).sum()
        loss.backward(retain_graph=True)
        first = model[0].weight.grad.clone()
        loss.backward()
    assert torch.equal(model[0].weight.grad, 2 * first)
    assert len(calls) == 2  # hooks see the two forwards and no recomputation


def test_evaluation_and_full_precision_inputs_are_left_alone() -> None:
    plain, model = twins()
    with torch.no_grad():
        assert torch.equal(plain.eval()(images()), model.eval()(images()))
    model = network(act_bits=32, recompute_inputs=True)
    model(images()).sum().backward()
