"""Recomputed inputs: the same numbers to the bit, activations kept once, safe in odd places."""

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
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(2),
        nn.Linear(4, 4),  # 3-d input: matrix products see a view of it
        nn.ReLU(),
        nn.Flatten(),
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


def kept_bytes(model, x) -> int:
    """Return the bytes that stay allocated after a forward pass, by the profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        loss = model(x).sum()
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("learn_weight_scale", [False, True])
def test_losses_and_gradients_are_bit_identical(channels_last, autocast, learn_weight_scale):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    results = []
    for model in twins(learn_weight_scale=learn_weight_scale):
        x = images().to(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), quantized_weights_once():
            loss = model(x).square().sum()
        loss.backward()
        results.append([loss.detach(), x.grad, *(p.grad for p in model.parameters())])
    for plain, recomputed in zip(*results):
        assert (plain is None and recomputed is None) or torch.equal(plain, recomputed)


def test_activations_are_kept_once() -> None:
    """Full precision keeps x of each ReLU and conv; so does the quantized network, plus weights."""

    def stack(**options):
        torch.manual_seed(0)
        layers = [[nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()] for _ in range(4)]
        return nn.Sequential(*(layer for pair in layers for layer in pair))

    x = torch.rand(4, 8, 32, 32)
    full, plain, recomputing = stack(), stack(), stack()
    quantize_model(plain, QuantConfig())
    quantize_model(recomputing, QuantConfig(recompute_inputs=True))
    for model in (plain, recomputing):
        set_scales(model, lambda model=model: model(x))
    base, activation = kept_bytes(full, x), x.numel() * 4
    assert kept_bytes(plain, x) >= base + 4 * activation
    assert kept_bytes(recomputing, x) < base + 0.2 * activation


def test_an_input_changed_before_backward_is_an_error() -> None:
    _, model = twins()
    x = images()
    loss = model(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_full_precision_weight_changed_before_backward_is_an_error() -> None:
    model = network(
        weight_bits=32,
        recompute_inputs=True,
        output_scale="never",
        rules=(QuantRule(pattern="*", output_scale=False),),
    )
    loss = model(images()).sum()
    with torch.no_grad():
        model[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_graph_may_be_walked_twice_and_models_copied() -> None:
    _, model = twins()
    loss = copy.deepcopy(model)(images()).sum() + model(images()).sum()
    loss.backward(retain_graph=True)
    once = model[0].weight.grad.clone()
    loss.backward()
    assert torch.equal(model[0].weight.grad, 2 * once)


def test_it_goes_with_torch_checkpoint() -> None:
    plain, model = twins()
    plain(images()).sum().backward()
    checkpoint(model, images(), use_reentrant=False).sum().backward()
    for theirs, ours in zip(plain.parameters(), model.parameters()):
        assert (theirs.grad is None and ours.grad is None) or torch.equal(theirs.grad, ours.grad)


def test_observers_of_the_quantizer_see_one_call() -> None:
    _, model = twins()
    calls = []
    model[2].input_quantizer.register_forward_hook(lambda *_: calls.append(1))
    model(images()).sum().backward()
    assert len(calls) == 1


def test_evaluation_and_full_precision_inputs_are_left_alone() -> None:
    plain, model = twins()
    with torch.no_grad():
        assert torch.equal(plain.eval()(images()), model.eval()(images()))
    model = network(act_bits=32, recompute_inputs=True)
    model(images()).sum().backward()


def test_config_refuses_other_values() -> None:
    with pytest.raises(ValueError, match="recompute_inputs='yes': must be True or False"):
        QuantConfig(recompute_inputs="yes")
