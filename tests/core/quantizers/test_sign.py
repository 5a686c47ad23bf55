"""Signs that data show: the same quantizer as with the sign given."""

import copy

import pytest
import torch
from every_quantizer import CASES, Case

from tr_det.core import build_quantizer
from tr_det.core.quantizers.sign import has_negatives, reach

INPUTS = [case for case in CASES if case.role == "input"]


def unsigned_of(case: Case) -> Case | None:
    """Return the unsigned case from which a sign is found, if the quantizer has it."""
    unsigned = case._replace(signed=False)
    return unsigned if unsigned in INPUTS else None


def open_quantizer(case: Case):
    quantizer = case._replace(signed=False).build()
    quantizer.follow_sign({})
    return quantizer


def assert_alike(found, given, x):
    assert found.identity() == given.identity()
    state, expected = found.state_dict(), given.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert torch.equal(found.codes(x), given.codes(x))
    assert found.codes(x).dtype == given.codes(x).dtype
    outs = []
    for quantizer in (found.train(), given.train()):
        leaf = x.clone().requires_grad_()
        out = quantizer(leaf)
        out.square().sum().backward()
        grads = [p.grad for p in quantizer.parameters()]
        outs.append([out, leaf.grad, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))


@pytest.mark.parametrize("case", [c for c in INPUTS if unsigned_of(c)], ids=str)
def test_data_and_checkpoints_set_the_sign(case):
    found, given = open_quantizer(case), case.build()
    held_before = set(map(id, found.parameters()))
    assert found.sign_is_open
    found.calibrate(case.data())
    given.calibrate(case.data())
    assert not found.sign_is_open
    assert_alike(copy.deepcopy(found), copy.deepcopy(given), case.data(seed=1))
    # An optimizer that was built before trains what is left of the parameters.
    assert set(map(id, found.parameters())) <= held_before
    loaded = open_quantizer(case)
    loaded.load_state_dict(given.state_dict())
    assert_alike(loaded, copy.deepcopy(given), case.data(seed=1))
    # What was found follows another checkpoint, too.
    other = case._replace(signed=not case.signed)
    if other in INPUTS:
        other_given = other.ready()
        found.load_state_dict(other_given.state_dict())
        assert_alike(found, other_given, other.data(seed=1))


def test_a_given_sign_is_not_changed_by_a_checkpoint():
    signed, unsigned = (build_quantizer("lsq", 4, s, role="input") for s in (True, False))
    signed.calibrate(torch.randn(50))
    with pytest.raises(RuntimeError, match="has lsq with codes -8 to 7, this model has lsq with c"):
        unsigned.load_state_dict(signed.state_dict())
    with pytest.raises(ValueError, match="negative values"):
        unsigned.calibrate(torch.randn(50))


@pytest.mark.parametrize(
    ("values", "signed"),
    [
        ([0.0, 0.0], False),
        ([-0.0, 1.0], False),
        ([-1e-7, 1.0], False),  # rounding
        ([-1e-5, 1.0], True),
        ([-1e-30, 0.0], True),
        ([-3.0, -2.0], True),
        ([], False),
    ],
)
def test_what_counts_as_negative(values, signed):
    assert has_negatives(reach(torch.tensor(values))).item() == signed


def test_what_rounding_leaves_below_zero_is_zero_on_an_unsigned_grid():
    quantizer = build_quantizer("fixed_grid", 8, signed=False)
    quantizer.calibrate(torch.tensor([-1e-7, 0.5, 1.0]))
    assert quantizer(torch.tensor([-1e-7])).item() == 0


def test_a_grid_that_does_not_exist_is_refused():
    quantizer = build_quantizer("lsq", 1, signed=False)
    quantizer.follow_sign({})
    with pytest.raises(ValueError, match="needs a signed grid, but bits=1: must be from 2 to 8"):
        quantizer.calibrate(torch.tensor([-1.0, 1.0]))


def test_data_without_elements_leave_the_sign_open():
    quantizer = build_quantizer("fixed_grid", 4, signed=False)
    quantizer.follow_sign({})
    quantizer.calibrate(torch.empty(0))
    assert quantizer.sign_is_open
