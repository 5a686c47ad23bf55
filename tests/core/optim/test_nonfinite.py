"""NaN and inf in gradients: refused or skipped, and nothing moves."""

import copy
import logging
import math

import pytest
import torch
from small_runs import NAMES, assert_equal, loss, make_model, pair, snapshot, train
from torch import nn

from tr_det.core import SGDT, tr_param_groups

every_optimizer = pytest.mark.parametrize("name", NAMES)


def spoil(model, optimizer, key, value):
    """Leave gradients of step 5 with one bad element."""
    optimizer.zero_grad()
    loss(model, 5).backward()
    model.get_parameter(key).grad.view(-1)[0] = value


@every_optimizer
@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("5.weight", math.nan, r"'5\.weight'"),
        ("5.weight", -math.inf, r"'5\.weight'"),
        ("1.bias", math.inf, "parameter . of a plain group"),
    ],
)
def test_by_default_the_step_is_refused_by_name_and_nothing_moves(name, key, value, named) -> None:
    model, optimizer = pair(name)
    train(model, optimizer, range(5))
    before = snapshot(model, optimizer)
    spoil(model, optimizer, key, value)
    with pytest.raises(FloatingPointError, match=f"of {named} has NaN or inf; nothing"):
        optimizer.step()
    assert_equal(snapshot(model, optimizer), before)


@every_optimizer
def test_a_skipped_step_leaves_no_trace(name, caplog) -> None:
    plain, spoiled = pair(name), pair(name, tr_nonfinite="skip")
    train(*plain, range(8))
    train(*spoiled, range(5))
    with caplog.at_level(logging.WARNING):
        for value in (math.nan, math.inf):
            spoil(*spoiled, "3.weight", value)
            spoiled[1].step()
            assert not spoiled[1].made_update
    assert spoiled[1].skipped_steps == 2
    assert "'3.weight' has NaN or inf: step skipped (2 so far)" in caplog.text
    train(*spoiled, range(5, 8))
    assert_equal(snapshot(*spoiled), snapshot(*plain))


def test_without_quantized_weights_it_is_torchs_step() -> None:
    model = nn.Linear(2, 2)
    model.weight.grad = torch.full((2, 2), math.nan)
    SGDT(tr_param_groups(model, lr=0.1), lr=0.1, total_steps=1).step()
    assert model.weight.isnan().all()


def test_large_finite_gradients_pass() -> None:
    """Their squares and their sum overflow float32; they themselves do not."""
    model, optimizer = pair()
    spoil(model, optimizer, "5.weight", 1e30)
    model[3].weight.grad.fill_(1e38)
    optimizer.step()


def test_on_a_device_a_refusal_comes_late_and_lasts_until_weights_are_loaded(like_a_device) -> None:
    model, optimizer = pair()
    train(model, optimizer, range(5))
    good = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    spoil(model, optimizer, "3.weight", math.nan)
    optimizer.step()
    for then in (optimizer.state_dict, optimizer.step, optimizer.state_dict):
        with pytest.raises(FloatingPointError, match="previous step .* resume from the last"):
            then()
    model.load_state_dict(good[0])
    optimizer.load_state_dict(good[1])
    twin = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(5, 7))
    train(*twin, range(5, 7))
    again = pair()
    train(*again, range(7))
    assert_equal(snapshot(model, optimizer), snapshot(*again))
    assert_equal(snapshot(*twin), snapshot(*again))


def test_values_of_sparse_gradients_are_checked() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = SGDT(
        [{"params": list(table.parameters())}, *tr_param_groups(make_model(), 0.1)],
        lr=0.1,
        total_steps=2,
    )
    table(torch.tensor([1, 1, 3])).sum().backward()
    before = table.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, table.weight)
    table.weight.grad._values()[0] = math.nan
    with pytest.raises(FloatingPointError):
        optimizer.step()
