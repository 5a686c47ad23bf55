"""`quantized_weights_once`: the same numbers, one quantizer call per layer, and no stale weight."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tr_det.core import (
    QuantConfig,
    quantize_model,
    quantized_layers,
    quantized_weights_anew,
    quantized_weights_once,
    set_scales,
)


class Head(nn.Module):
    """Two convolutions that every level of a pyramid goes through."""

    def __init__(self, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        )
        quantize_model(self, QuantConfig(**options))
        set_scales(self, lambda: self.forward(levels()))
        self.calls = {"convs.0": 0, "convs.2": 0}
        for name, layer in quantized_layers(self):
            layer.weight_quantizer.register_forward_hook(
                lambda *_, name=name: self.calls.__setitem__(name, self.calls[name] + 1)
            )

    def level(self, feature: Tensor) -> Tensor:
        return self.convs(feature).square().mean()

    def forward(self, features: list[Tensor]) -> Tensor:
        return sum(self.level(feature) for feature in features)


def levels(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 4, size, size, generator=generator) for size in (16, 8, 4, 2, 1)]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model: nn.Module, expected: nn.Module) -> None:
    assert gradients(model).keys() == gradients(expected).keys()
    for name, grad in gradients(expected).items():
        torch.testing.assert_close(gradients(model)[name], grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("learned", [False, True])
def test_losses_are_bit_identical_and_gradients_equal_but_for_the_order_of_sums(learned):
    plain, shared = Head(learn_weight_scale=learned), Head(learn_weight_scale=learned)
    expected = plain(levels())
    with quantized_weights_once():
        loss = shared(levels())
    assert torch.equal(loss, expected)
    expected.backward()
    loss.backward()
    assert_same_gradients(shared, plain)


def test_each_weight_is_quantized_once_per_scope() -> None:
    model = Head()
    for _ in range(3):
        with quantized_weights_once(), quantized_weights_once():  # an inner scope joins
            model(levels()).backward()
    assert model.calls == {"convs.0": 3, "convs.2": 3}
    model(levels())
    assert model.calls == {"convs.0": 8, "convs.2": 8}


def test_gradients_accumulate_in_several_scopes_or_one() -> None:
    """In one scope nothing but the backward pass says that a graph is freed."""
    plain, several, one = Head(), Head(), Head()
    for seed in (1, 2):
        plain(levels(seed)).backward()
        with quantized_weights_once():
            loss = several(levels(seed))
        loss.backward()
    with quantized_weights_once():
        for seed in (1, 2):
            one(levels(seed)).backward()
    assert_same_gradients(several, plain)
    assert_same_gradients(one, plain)


def _swap_data(layer: nn.Module) -> None:
    layer.weight.data = layer.weight.data + 0.2


def _swap_parameter(layer: nn.Module) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() + 0.2)


CHANGES = {
    "in place": lambda layer: layer.weight.add_(0.2),
    "data": _swap_data,
    "parameter": _swap_parameter,
    "scale": lambda layer: layer.weight_quantizer.scale.mul_(0.5),
    "load": lambda layer: layer.load_state_dict(
        {**layer.state_dict(), "weight": layer.weight + 0.2}
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("grad", [False, True])
def test_a_changed_weight_or_scale_is_seen_within_the_scope(change, grad: bool) -> None:
    layer = Head().convs[0]
    with torch.set_grad_enabled(grad), quantized_weights_once():
        before = layer.quantized_weight()
        with torch.no_grad():
            change(layer)
        after = layer.quantized_weight()
    assert not torch.equal(before, after)
    assert torch.equal(after, layer.quantized_weight())


def test_weights_given_for_one_call_are_not_those_of_the_next() -> None:
    """functional_call's tensors may die and leave their address and id to the next ones."""
    model, name = Head(), "convs.0.weight"
    weight = model.get_parameter(name).detach()
    with torch.no_grad(), quantized_weights_once():
        for shift in (0.0, 0.2, 0.4):
            given = {name: weight + shift}
            inside = torch.func.functional_call(model, given, (levels(),))
            with quantized_weights_anew():
                expected = torch.func.functional_call(model, given, (levels(),))
            assert torch.equal(inside, expected)
            del given


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_weights_of_an_evaluation_are_not_those_of_training(without_gradients) -> None:
    model = Head()
    with quantized_weights_once():
        with without_gradients():
            model(levels())
        loss = model(levels())
    loss.backward()
    assert gradients(model)["convs.0.weight"].abs().sum() > 0


def test_a_model_can_be_copied_in_the_middle_of_a_scope() -> None:
    model = Head().convs
    with quantized_weights_once():
        expected = model(levels()[0])
        twin = copy.deepcopy(model)
        assert torch.equal(twin(levels()[0]), expected)
        assert twin[0].quantized_weight() is not model[0].quantized_weight()
    assert twin.state_dict().keys() == model.state_dict().keys()


def test_an_error_inside_closes_the_scope() -> None:
    model = Head()
    hook = model.convs[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), quantized_weights_once():
        model(levels())
    hook.remove()
    model(levels())
    assert model.calls == {"convs.0": 6, "convs.2": 5}


def test_threads_do_not_share_a_scope() -> None:
    layer = Head().convs[0]
    seen = []
    with quantized_weights_once():
        weight = layer.quantized_weight()
        thread = threading.Thread(target=lambda: seen.append(layer.quantized_weight()))
        thread.start()
        thread.join()
        assert weight is layer.quantized_weight()
    assert seen[0] is not weight
    assert torch.equal(seen[0], weight)


def test_checkpointed_levels_train_where_each_region_ignores_the_scope() -> None:
    """Otherwise torch refuses: the second run, in the backward pass, knows no scope."""
    plain, model, refused = Head(), Head(), Head()
    plain(levels()).backward()
    options = {"use_reentrant": False}
    with quantized_weights_once():
        other = sum(checkpoint(refused.level, feature, **options) for feature in levels())
        options["context_fn"] = lambda: (quantized_weights_anew(), quantized_weights_anew())
        loss = sum(checkpoint(model.level, feature, **options) for feature in levels())
    loss.backward()
    assert_same_gradients(model, plain)
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        other.backward()


def test_a_scope_compiles_without_graph_breaks_to_the_same_numbers() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)]
    model = nn.Sequential(*layers)
    quantize_model(model, QuantConfig(recompute_inputs=True))
    set_scales(model, lambda: model(levels()[0]))

    def forward(model, first, second):
        with quantized_weights_once():
            return model(first).square().mean() + model(second).square().mean()

    plain, compiled = copy.deepcopy(model), copy.deepcopy(model)
    features = levels()[:2]
    forward(plain, *features).backward()
    torch.compile(forward, backend="aot_eager", fullgraph=True)(compiled, *features).backward()
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(compiled)[name], grad, rtol=1e-4, atol=1e-6)
