"""The average of latent weights against one computed by hand."""

import copy

import pytest
import torch
from small_runs import assert_equal, make_model, make_optimizer, train
from torch import nn

from tr_det.core import ConfigError, QuantConfig, attach, build_method, quantize_model


def start():
    model = make_model()
    optimizer = make_optimizer(model)
    method = build_method("weight_average", decay=0.9)
    return model, optimizer, method, attach([method], model, optimizer, 20)


def test_it_is_the_moving_average_of_all_floating_point_state():
    model, optimizer, method, _ = start()
    by_hand = {}
    for step in range(15):
        train(model, optimizer, [step])
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                old = by_hand.get(name, value.double())
                by_hand[name] = decay * old + (1 - decay) * value.double()
    assert method.average.keys() == by_hand.keys()
    assert any("scale" in name for name in by_hand)
    for name, expected in by_hand.items():
        torch.testing.assert_close(method.average[name].double(), expected, rtol=1e-5, atol=1e-7)


def test_evaluating_shows_the_average_and_then_the_weights_again():
    model, optimizer, method, attached = start()
    train(model, optimizer, range(8))
    before = copy.deepcopy(model.state_dict())
    with attached.evaluating():
        for name, value in method.average.items():
            assert torch.equal(model.state_dict()[name], value)
        assert not torch.equal(model[3].weight, before["3.weight"])
    assert_equal(dict(model.state_dict()), dict(before))
    with pytest.raises(ZeroDivisionError), attached.evaluating():
        1 / 0  # noqa: B018
    assert torch.equal(model[3].weight, before["3.weight"])


@pytest.mark.parametrize("act_quantizer", ["fixed_grid", "running_minmax"])  # parameter, buffer
def test_the_average_of_a_scale_starts_when_the_scale_is_set(act_quantizer):
    """It is set late in a detector's second stage if the first batch has no proposals."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, both):
            return self.first(x).sum() + self.second(x if both else x[:0]).sum()

    model = Late()
    quantize_model(model, QuantConfig(act_quantizer=act_quantizer))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached = attach(["weight_average"], model, optimizer, 5)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.rand(3, 4), both=step > 0).backward()
        optimizer.step()
    with attached.evaluating():
        assert torch.isfinite(model.eval()(torch.rand(3, 4), both=True))


@pytest.mark.parametrize("decay", [-0.1, 1.0, True, "0.9"])
def test_another_decay_is_refused(decay):
    with pytest.raises(ConfigError, match=r"^decay=.*: must be in \[0, 1\)"):
        build_method("weight_average", decay=decay)
