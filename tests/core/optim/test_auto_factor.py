"""``tr_factor="auto"``: plain training first, then a target that comes from what it showed."""

import logging
import math

import pytest
import torch
from small_runs import NAMES, loss, make_model, make_optimizer, pair, snapshot, tr_groups, train

from tr_det.core import without_transition
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
    twin = make_optimizer(plain, name)
    options = {key: value for key, value in twin.defaults.items() if key in ("momentum",)}
    groups = [
        {key: value for key, value in group.items() if not key.startswith("tr_")}
        for group in without_transition(twin.param_groups)
    ]
    torch_class = next(c for c in type(twin).__mro__ if c.__module__.startswith("torch.optim"))
    train(plain, torch_class(groups, lr=twin.defaults["lr"], **options), range(PROBE))
    for (key, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=key)
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


def test_it_is_deterministic() -> None:
    first, second = auto(), auto()
    for model, optimizer in (first, second):
        train(model, optimizer, range(2 * PROBE))
    assert snapshot(*first)["/1/param_groups/1/tr_factor"] > 0
    assert str(snapshot(*first)) == str(snapshot(*second))


def test_a_loaded_factor_is_kept_by_auto_and_replaced_by_a_number() -> None:
    model, optimizer = auto()
    train(model, optimizer, range(2 * PROBE))
    found = tr_groups(optimizer)[0]["tr_factor"]
    state = optimizer.state_dict()
    for factor, expected in (("auto", found), (0.25, 0.25)):
        other = make_optimizer(make_model(), total_steps=TOTAL, tr_factor=factor)
        other.load_state_dict(state)
        assert [group["tr_factor"] for group in tr_groups(other)] == [expected] * 2


def test_a_group_that_comes_after_the_probe_takes_the_factor_found() -> None:
    model, optimizer = auto()
    train(model, optimizer, range(2 * PROBE))
    late = torch.nn.Linear(2, 2)
    quantizer = model[3].weight_quantizer
    optimizer.add_param_group({"params": late.weight, "name": "late", "quantizer": quantizer})
    assert len({group["tr_factor"] for group in tr_groups(optimizer)}) == 1


@pytest.mark.parametrize("factor", ["automatic", 0.0, -1e-3, 1.5, math.inf, math.nan])
def test_other_words_and_numbers_are_refused(factor) -> None:
    with pytest.raises(ValueError, match=r"^tr_factor=.*: must be in \(0, 1\], or 'auto'"):
        pair(tr_factor=factor)


def step_with(model, optimizer, step, awake):
    """Make a step in which only these layers have gradients."""
    optimizer.zero_grad()
    loss(model, step).backward()
    for name in ("3.weight", "5.weight"):
        if name not in awake:
            model.get_parameter(name).grad = None
    optimizer.step()


def test_a_layer_that_fell_asleep_before_it_was_measured_does_not_count() -> None:
    """One update gives no rate: nothing divided by nothing."""
    model, optimizer = auto()
    step_with(model, optimizer, 0, ["3.weight", "5.weight"])
    for step in range(1, PROBE + 3):
        step_with(model, optimizer, step, ["3.weight"])
    factors = {group["tr_factor"] for group in tr_groups(optimizer)}
    assert len(factors) == 1
    assert 0 < factors.pop() < 1
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_layers_that_sleep_at_first_are_probed_when_they_wake_up() -> None:
    model, optimizer = auto()
    for step in range(3 * PROBE):
        step_with(model, optimizer, step, [])
    assert [group["tr_factor"] for group in tr_groups(optimizer)] == [None, None]
    for step in range(PROBE + 1):
        assert tr_groups(optimizer)[1]["tr_factor"] is None
        step_with(model, optimizer, step, ["5.weight"])
    assert tr_groups(optimizer)[1]["tr_factor"] > 0
