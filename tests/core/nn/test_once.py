"""`quantized_weights_once`: the same numbers, one quantizer call per layer, and no stale weight."""

import copy
import pickle
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

    def __init__(self, learn_weight_scale: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        )
        quantize_model(self, QuantConfig(learn_weight_scale=learn_weight_scale))
        set_scales(self, lambda: self.forward(levels()))
        self.calls: dict[str, int] = {}
        for name, layer in quantized_layers(self):
            layer.weight_quantizer.register_forward_hook(
                lambda *_, name=name: self.calls.__setitem__(name, self.calls.get(name, 0) + 1)
            )

    def forward(self, features: list[Tensor]) -> Tensor:
        return sum(self.convs(feature).square().mean() for feature in features)


def levels(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 4, size, size, generator=generator) for size in (16, 8, 4, 2, 1)]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("learn_weight_scale", [False, True])
def test_loss_is_bit_identical_and_gradients_equal_up_to_the_order_of_summation(
    learn_weight_scale: bool,
) -> None:
    plain, cached = Head(learn_weight_scale), Head(learn_weight_scale)
    expected = plain(levels())
    with quantized_weights_once():
        loss = cached(levels())
    assert torch.equal(loss, expected)
    expected.backward()
    loss.backward()
    assert gradients(plain).keys() == gradients(cached).keys()
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(cached)[name], grad, rtol=1e-5, atol=1e-7)


def test_each_weight_is_quantized_once_per_scope() -> None:
    model = Head()
    for _ in range(3):
        with quantized_weights_once(), quantized_weights_once():  # an inner scope joins
            model(levels()).backward()
    assert model.calls == {"convs.0": 3, "convs.2": 3}
    model(levels())
    assert model.calls == {"convs.0": 8, "convs.2": 8}


def test_gradients_accumulate_over_two_forwards_and_backwards() -> None:
    plain, cached = Head(), Head()
    for seed in (1, 2):
        plain(levels(seed)).backward()
        with quantized_weights_once():
            loss = cached(levels(seed))
        loss.backward()
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(cached)[name], grad, rtol=1e-5, atol=1e-7)


def test_a_scope_around_forwards_and_backwards_uses_no_spent_graph() -> None:
    plain, cached = Head(), Head()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for model in (plain, cached)]
    with quantized_weights_once():
        for seed in (1, 2, 3):
            for model, optimizer in zip((plain, cached), optimizers):
                optimizer.zero_grad()
                if model is plain:
                    with quantized_weights_anew():
                        loss = model(levels(seed))
                else:
                    loss = model(levels(seed))
                loss.backward()
                optimizer.step()
    for theirs, ours in zip(plain.parameters(), cached.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_accumulate_within_one_scope() -> None:
    """No optimizer step in between: nothing but the backward pass says that a graph is spent."""
    plain, cached = Head(), Head()
    with quantized_weights_once():
        for seed in (1, 2):
            cached(levels(seed)).backward()
    for seed in (1, 2):
        plain(levels(seed)).backward()
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(cached)[name], grad, rtol=1e-5, atol=1e-7)


def test_a_graph_may_be_walked_twice() -> None:
    model = Head()
    with quantized_weights_once():
        loss = model(levels())
        loss.backward(retain_graph=True)
        once = {name: grad.clone() for name, grad in gradients(model).items()}
        loss.backward()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, 2 * once[name])


def _shift(model: Head) -> None:
    with torch.no_grad():
        model.convs[0].weight.add_(0.2)


def _swap_data(model: Head) -> None:
    model.convs[0].weight.data = model.convs[0].weight.data + 0.2


def _swap_parameter(model: Head) -> None:
    model.convs[0].weight = nn.Parameter(model.convs[0].weight.detach() + 0.2)


def _rescale(model: Head) -> None:
    with torch.no_grad():
        model.convs[0].weight_quantizer.scale.mul_(0.5)


def _load(model: Head) -> None:
    state = model.state_dict()
    state["convs.0.weight"] = state["convs.0.weight"] + 0.2
    model.load_state_dict(state)


@pytest.mark.parametrize("change", [_shift, _swap_data, _swap_parameter, _rescale, _load])
@pytest.mark.parametrize("grad", [False, True])
def test_a_changed_weight_or_scale_is_seen_within_the_scope(change, grad: bool) -> None:
    model = Head()
    with torch.set_grad_enabled(grad), quantized_weights_once():
        before = model.convs[0].quantized_weight()
        change(model)
        after = model.convs[0].quantized_weight()
    assert not torch.equal(before, after)
    assert torch.equal(after, model.convs[0].quantized_weight())


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


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_model_can_be_copied_in_the_middle_of_a_scope(duplicate) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    quantize_model(model, QuantConfig())
    set_scales(model, lambda: model(levels()[0]))
    with quantized_weights_once():
        expected = model(levels()[0])
        twin = duplicate(model)
        assert torch.equal(twin(levels()[0]), expected)
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert twin[0].quantized_weight() is not model[0].quantized_weight()


def test_an_error_inside_closes_the_scope() -> None:
    model = Head()
    model.convs[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), quantized_weights_once():
        model(levels())
    model.convs[2]._forward_pre_hooks.clear()
    model.calls.clear()
    model(levels())
    assert model.calls == {"convs.0": 5, "convs.2": 5}


def test_threads_do_not_share_a_scope() -> None:
    model = Head()
    seen = []
    with quantized_weights_once():
        mine = model.convs[0].quantized_weight()
        thread = threading.Thread(target=lambda: seen.append(model.convs[0].quantized_weight()))
        thread.start()
        thread.join()
        assert mine is model.convs[0].quantized_weight()
    assert seen[0] is not mine
    assert torch.equal(seen[0], mine)


def test_checkpointed_levels_train_where_each_region_quantizes_anew() -> None:
    """As the recomputation in the backward pass does, which knows no scope."""

    class Checkpointed(Head):
        def forward(self, features):
            return sum(
                checkpoint(
                    self._level,
                    feature,
                    use_reentrant=False,
                    context_fn=lambda: (quantized_weights_anew(), quantized_weights_anew()),
                )
                for feature in features
            )

        def _level(self, feature):
            return self.convs(feature).square().mean()

    plain, model = Head(), Checkpointed()
    plain(levels()).backward()
    with quantized_weights_once():
        loss = model(levels())
    loss.backward()
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(gradients(model)[name], grad, rtol=1e-5, atol=1e-7)


def test_a_scope_works_under_autocast_and_its_values_are_not_mixed_with_those_outside() -> None:
    model = Head()
    with quantized_weights_once(), torch.autocast("cpu", torch.bfloat16):
        loss = model(levels())
    loss.backward()
    assert all(torch.isfinite(grad).all() for grad in gradients(model).values())
    assert model.calls == {"convs.0": 1, "convs.2": 1}


def test_a_checkpointed_region_inside_a_scope_never_trains_on_other_numbers() -> None:
    """Plain torch.utils.checkpoint over a shared layer: an error of torch's, and no silence."""
    model = Head()
    with quantized_weights_once():
        loss = sum(
            checkpoint(model.convs, feature, use_reentrant=False).square().mean()
            for feature in levels()
        )
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        loss.backward()


@pytest.mark.parametrize("recompute_inputs", [False, True])
def test_a_scope_compiles_without_graph_breaks_to_the_same_numbers(recompute_inputs) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)]
    model = nn.Sequential(*layers)
    quantize_model(model, QuantConfig(recompute_inputs=recompute_inputs))
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
