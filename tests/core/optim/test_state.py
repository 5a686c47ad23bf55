"""State of TR-scheduled optimizers: resume, checkpoints of something else, copies."""

import copy
import pickle

import pytest
import torch
from small_runs import (
    NAMES,
    STEPS,
    assert_equal,
    leaves,
    make_model,
    make_optimizer,
    pair,
    snapshot,
    through_file,
    tr_groups,
    train,
)
from torch import Tensor, nn

from tr_det.core import SGDT, tr_param_groups, without_transition

every_optimizer = pytest.mark.parametrize("name", NAMES)
TRAINED = {"learn_weight_scale": True, "tr_gain": 1.0}
SETTINGS = [
    {"tr_update": "pi", "tr_momentum": None},
    {"tr_update": "momentum", "tr_signal": "effective_step_size"},
    {"tr_update": "pi", "tr_granularity": "model", "tr_schedule": "linear"},
    {"tr_update": "pi", "tr_factor": "auto", "tr_warmup": 5},
    {"tr_scales": "by_weight", **TRAINED},
    {"tr_scales": "sum", **TRAINED},
]


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in NAMES), *(("SGDT", s) for s in SETTINGS)]
)
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(name, settings, stop) -> None:
    whole, stopped, resumed = (pair(name, seed, **settings) for seed in (0, 0, 1))
    train(*whole)
    assert all(group["running_tr"] > 0 for group in tr_groups(whole[1]))
    train(*stopped, range(stop))
    for part, saved in zip(resumed, stopped, strict=True):
        part.load_state_dict(through_file(saved.state_dict()))
    assert_equal(snapshot(*resumed), snapshot(*stopped))
    train(*resumed, range(stop, STEPS))
    assert_equal(snapshot(*resumed), snapshot(*whole))


@every_optimizer
def test_rewinding_by_a_state_loaded_twice_repeats_the_run(name: str) -> None:
    model, optimizer = pair(name)
    train(model, optimizer, range(7))
    state = through_file([model.state_dict(), optimizer.state_dict()])
    train(model, optimizer, range(7, STEPS))
    expected = snapshot(model, optimizer)
    for _ in range(2):
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
    train(model, optimizer, range(7, STEPS))
    assert_equal(snapshot(model, optimizer), expected)


@every_optimizer
def test_state_dict_is_a_snapshot_of_plain_values(name: str) -> None:
    model, optimizer = pair(name)
    train(model, optimizer, range(2))
    groups = optimizer.state_dict()["param_groups"]
    values = leaves(optimizer.state_dict()).values()
    assert all(isinstance(v, Tensor | int | float | str | None) for v in values)
    before = copy.deepcopy(groups)
    train(model, optimizer, range(2, 5))
    assert_equal(leaves(groups), leaves(before))
    assert all("quantizer" in group for group in optimizer.param_groups[1:3])


def reordered(order):
    """Return an optimizer with its groups in another order: rest, two weights, scales."""
    groups = tr_param_groups(make_model(), 0.05)
    return SGDT([groups[index] for index in order], lr=0.05, total_steps=STEPS)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            lambda: make_optimizer(nn.ModuleDict({"head": make_model()})),
            r"'head\.3\.weight' where this model has '3\.weight'",
        ),
        (lambda: reordered([0, 2, 1, 3]), r"'5\.weight' where this model has '3\.weight'"),
        (lambda: reordered([1, 0, 2, 3]), r"'3\.weight' where this model has an ordinary group"),
        (
            lambda: make_optimizer(make_model(bits=3)),
            r"'3\.weight' is for 3 bits, this model has 2",
        ),
        (lambda: pair("AdamT")[1], "written by TR-scheduled Adam, this is SGD"),
        (
            lambda: torch.optim.SGD(without_transition(tr_param_groups(make_model(), 0.05))),
            "has 0 TR-scheduled weights, this optimizer has 2",
        ),
    ],
)
def test_foreign_checkpoint_is_refused_and_changes_nothing(saved, message: str) -> None:
    model, optimizer = pair()
    train(model, optimizer, range(2))
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved().state_dict())
    assert_equal(snapshot(model, optimizer), before)


@every_optimizer
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["deepcopy", "pickle"],
)
def test_copy_continues_like_the_original_on_its_own_weights(name, duplicate) -> None:
    original = pair(name)
    train(*original, range(6))
    before = snapshot(*original)
    twin = duplicate(original)
    train(*twin, range(6, STEPS))
    assert_equal(snapshot(*original), before)
    train(*original, range(6, STEPS))
    assert_equal(snapshot(*twin), snapshot(*original))


def test_hooks_after_loading_find_the_quantizers() -> None:
    _, optimizer = pair()
    found = []
    optimizer.register_load_state_dict_post_hook(lambda o: found.append(len(tr_groups(o))))
    optimizer.load_state_dict(optimizer.state_dict())
    assert found == [2]
