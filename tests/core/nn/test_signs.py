"""Signs of inputs, found by `set_scales`."""

import logging

import pytest
import torch
from torch import Tensor, nn

from tr_det.core import (
    QuantConfig,
    QuantRule,
    attach,
    quantize_model,
    quantized_layers,
    set_scales,
)


class Pyramid(nn.Module):
    """A head on two levels, of which the second alone can be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.down = nn.Conv2d(4, 4, 3)
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU(), nn.Conv2d(4, 2, 1))
        self.pooled = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.body(x)]
        levels.append(self.down(levels[0]))
        outs = [self.head(level).mean((2, 3)) for level in levels]
        return outs[0] + outs[1] + self.pooled(levels[0].mean((2, 3)).softmax(1))


EXPECTED = {"body.0": True, "down": False, "head.0": True, "head.2": True, "pooled": False}


def pyramid(**options) -> Pyramid:
    torch.manual_seed(0)
    model = Pyramid()
    quantize_model(model, QuantConfig(**options))
    return model


class ByKeyword(nn.Module):
    """A negative input and then a positive one, given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(input=self.first(input=x).mean((2, 3)).relu())


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def signs(model: nn.Module) -> dict[str, bool]:
    return {name: layer.input_quantizer.signed for name, layer in quantized_layers(model)}


@pytest.mark.parametrize("act", ["fixed_grid", "ewgs", "qnet"])
def test_every_input_of_a_layer_is_looked_at(act, caplog) -> None:
    model = pyramid(act_quantizer=act)
    with caplog.at_level(logging.INFO):
        set_scales(model, lambda: model(images()))
    assert signs(model) == EXPECTED
    assert "found by looking: 3 of 5 layers: body.0, head.0, head.2" in caplog.text
    report = quantize_model(model, QuantConfig(act_quantizer=act))
    assert {x.name: x.signed_input for x in report.layers} == EXPECTED
    assert "signed input, found" in report.table()
    # The same as with the signs given, number by number.
    given = [QuantRule(pattern=key, signed_input=value) for key, value in EXPECTED.items()]
    twin = pyramid(act_quantizer=act, rules=tuple(given))
    set_scales(twin, lambda: twin(images()))
    state = twin.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()
    loaded = pyramid(act_quantizer=act)
    loaded.load_state_dict(state)
    assert signs(loaded) == EXPECTED
    assert torch.equal(loaded.eval()(images()), twin.eval()(images()))


@pytest.mark.parametrize("act", ["fixed_grid", "ewgs", "qnet", "running_minmax"])
def test_training_goes_as_with_given_signs(act) -> None:
    """With an optimizer and an average that were there before the signs were known."""
    given = tuple(QuantRule(pattern=key, signed_input=value) for key, value in EXPECTED.items())
    trained = []
    for rules in ((), given):
        model = pyramid(act_quantizer=act, rules=rules)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        attached = attach(["weight_average"], model, optimizer, 3)
        for _ in range(3):
            optimizer.zero_grad()
            model(images()).square().mean().backward()
            optimizer.step()
        with attached.evaluating():
            trained.append((model.eval()(images()), model.state_dict()))
    (found, state), (expected, _) = trained
    assert torch.equal(found, expected)
    other = pyramid(act_quantizer=act)
    other.load_state_dict(state)


def test_layers_that_are_called_by_keyword_are_looked_at_and_calibrated() -> None:
    model = ByKeyword()
    quantize_model(model, QuantConfig())
    set_scales(model, lambda: model(images()))
    assert signs(model) == {"first": True, "second": False}
    assert model(images()).isfinite().all()


def test_a_rule_wins_over_data() -> None:
    rules = (
        QuantRule(pattern="down", signed_input=True),
        QuantRule(pattern="head.2", signed_input=False),
    )
    model = pyramid(rules=rules)
    with pytest.raises(ValueError, match=r"^head\.2\.input_quantizer: the input has negative"):
        set_scales(model, lambda: model(images()))
    assert signs(model)["down"]
