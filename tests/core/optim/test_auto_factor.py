"""``tr_factor="auto"``: plain training first, then a target from the rates it showed."""

import copy
import logging
import math

import pytest
import torch
from small_runs import (
    NAMES,
    OPTIMIZERS,
    make_model,
    make_optimizer,
    pair,
    torch_class,
    tr_group,
    tr_groups,
    train,
)

from tr_det.core import tr_param_groups, without_transition
from tr_det.core.transition import factor_from, probe_steps

TOTAL = 100
PROBE = probe_steps(TOTAL)


def auto(name="SGDT", **options):
    return pair(name, **{"total_steps": TOTAL, "tr_factor": "auto", **options})


@pytest.mark.parametrize("name", NAMES)
def test_the_probe_trains_like_the_plain_optimizer_at_its_base_rate(name) -> None:
    model, optimizer = auto(name)
    train(model, optimizer, range(PROBE))
    plain = make_model()
    options = dict(OPTIMIZERS[name])
    lr = optimizer.defaults["lr"]
    groups = without_transition(tr_param_groups(plain, lr, options.pop("weight_decay")))
    train(plain, torch_class(optimizer)(groups, lr=lr, **options), range(PROBE))
    weights = list(model.parameters()), list(plain.parameters())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
    assert [group["talr"] for group in tr_groups(optimizer)] == [
        group["tr_base_lr"] for group in tr_groups(optimizer)
    ]


def test_lambda_comes_from_the_measured_rates_and_every_group_shows_it(caplog) -> None:
    model, optimizer = auto()
    rates = []
    for step in range(PROBE):
        train(model, optimizer, [step])
        rates.append(optimizer.transition_metrics().rate)
        assert optimizer.transition_metrics().target.isnan().all()
        assert all(group["tr_factor"] is None for group in tr_groups(optimizer))
    # by hand: the running rate with m = 0.5, divided by the weights of its terms
    weights = [0.5**age for age in range(PROBE)][::-1]
    means = [
        sum(w * rate[layer].item() for w, rate in zip(weights, rates, strict=True)) / sum(weights)
        for layer in range(2)
    ]
    with caplog.at_level(logging.INFO):
        train(model, optimizer, [PROBE])
    expected = factor_from(means, [2, 4])
    assert [group["tr_factor"] for group in tr_groups(optimizer)] == [pytest.approx(expected)] * 2
    shape = 0.5 * (1 + math.cos(math.pi * PROBE / TOTAL))
    assert tr_groups(optimizer)[0]["target_tr"] == pytest.approx(expected * 2**0.5 * shape)
    assert "tr_factor='auto': lambda" in caplog.text
    assert f"during {PROBE} updates" in caplog.text
    with caplog.at_level(logging.INFO):
        train(model, optimizer, range(PROBE + 1, TOTAL))
    assert sum("lambda" in message for message in caplog.messages) == 1


def test_the_factor_reaches_late_groups_and_checkpoints_but_a_given_number_wins() -> None:
    model, optimizer = auto()
    train(model, optimizer, range(2 * PROBE))
    found = tr_groups(optimizer)[0]["tr_factor"]
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.add_param_group(tr_group(torch.randn(4), name="late"))
    assert [group["tr_factor"] for group in tr_groups(optimizer)] == 3 * [found]
    for factor, expected in (("auto", found), (0.25, 0.25)):
        other = make_optimizer(make_model(), total_steps=TOTAL, tr_factor=factor)
        other.load_state_dict(state)
        assert [group["tr_factor"] for group in tr_groups(other)] == [expected] * 2


def test_a_layer_with_one_update_does_not_count() -> None:
    """One update gives no rate: it would be 0 / 0."""
    model, optimizer = auto()
    train(model, optimizer, [0])
    train(model, optimizer, range(1, PROBE + 3), without=["5.weight"])
    factors = {group["tr_factor"] for group in tr_groups(optimizer)}
    assert len(factors) == 1
    assert 0 < factors.pop() < 1
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_probe_waits_for_the_first_gradients() -> None:
    model, optimizer = auto()
    train(model, optimizer, range(3 * PROBE), without=["3.weight", "5.weight"])
    for step in range(PROBE + 1):
        assert [group["tr_factor"] for group in tr_groups(optimizer)] == [None, None]
        train(model, optimizer, [step], without=["3.weight"])
    assert tr_groups(optimizer)[1]["tr_factor"] > 0
