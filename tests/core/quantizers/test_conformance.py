"""What every registered quantizer must do, at every bit-width, sign and role that it has."""

import copy
import io
import math
import pickle

import pytest
import torch
from every_quantizer import CASES, CHANNELS, every, to_compile, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from tr_det.core import QUANTIZERS, ConfigError


def results(quantizer, x, function=None):
    """Return output and gradients."""
    x = x.detach().clone().requires_grad_()
    quantizer.zero_grad()
    out = (quantizer if function is None else function)(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in quantizer.parameters() if p.requires_grad)]


def level_of(quantizer, codes, case):
    """Return the level of each code, looked up."""
    index, levels = codes.long() - quantizer.low, quantizer.levels()
    if case.axis is None:
        return levels[index]
    rows = torch.arange(CHANNELS).view([-1, *[1] * (codes.ndim - 1 - case.axis)])
    return levels[rows.expand(codes.shape), index]


def through_file(value):
    torch.save(value, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_every_quantizer_is_tested_at_every_width():
    for name in QUANTIZERS:
        assert {c.bits for c in CASES if c.name == name} >= {2 if name == "ternary" else 8}


@every
def test_codes_are_small_integers_that_ascend_and_name_the_output(case):
    quantizer = case.ready().eval()
    low, high = quantizer.low, quantizer.high
    assert quantizer.spec.low <= low < high <= quantizer.spec.high
    levels = quantizer.levels()
    assert levels.shape == (*(() if case.axis is None else (CHANNELS,)), high - low + 1)
    assert (levels.diff() > 0).all()
    for x in (case.data(seed=1), case.ramp()):
        codes = quantizer.codes(x)
        assert codes.dtype == (torch.int8 if case.signed else torch.uint8)
        assert codes.shape == x.shape
        assert low <= codes.min() <= codes.max() <= high
        out = quantizer(x).detach()
        assert torch.equal(out, quantizer.values(codes).detach())
        assert torch.equal(out, level_of(quantizer, codes, case))
        points = quantizer.transition_points()
        assert (points.diff() > 0).all()
        # A float of rounding may put what is next to a transition point on its other side.
        units = quantizer.normalized(x)
        passed = (units[..., None] > points).sum(-1)
        near = (units[..., None] - points).abs().amin(-1) < 1e-4
        assert torch.equal((codes.long() - low)[~near], passed[~near])
    assert (codes.long().diff() >= 0).all()
    assert (codes[..., 0] == low).all()
    assert (codes[..., -1] == high).all()


@every
def test_centres_grid_and_rounding_agree_with_codes_and_levels(case):
    """Levels are affine in the code; the middle of a code's interval has that code."""
    quantizer = case.ready()
    codes = torch.arange(quantizer.low, quantizer.high + 1)
    shown = codes.expand((2, CHANNELS, -1) if case.axis == 1 else (CHANNELS, -1))
    centres = quantizer.centres(shown)
    assert (centres.dtype, centres.shape) == (torch.float32, shown.shape)
    assert torch.equal(quantizer.codes(centres).long(), shown)
    grid, rounding = quantizer.grid(), quantizer.rounding()
    assert (rounding is None) == (quantizer.kernel() is None)
    if grid is not None:
        assert (grid.low, grid.high) == (quantizer.low, quantizer.high)
        offset = 0 if grid.offset is None else grid.offset[..., None]
        by_hand = grid.step[..., None] * (grid.mul * codes + grid.add) + offset
        torch.testing.assert_close(by_hand.expand_as(quantizer.levels()), quantizer.levels())
    if rounding is None:
        return
    shift = 0 if rounding.shift is None else rounding.shift[..., None]
    units = codes - rounding.base if rounding.tie == "even" else codes.sign() + (codes == 0)
    torch.testing.assert_close(centres, (shift + rounding.step[..., None] * units).expand_as(shown))


@every
def test_codes_and_evaluation_have_no_side_effect(case):
    quantizer, x = case.ready(), case.data(seed=1)
    before, kept = copy.deepcopy(quantizer.state_dict()), x.clone()
    first, out = quantizer.codes(x), quantizer.eval()(x)
    assert torch.equal(first, quantizer.codes(x))
    assert torch.equal(out, quantizer(x))
    assert quantizer.soft != torch.equal(out, quantizer.train()(x))
    assert torch.equal(x, kept)
    assert all(torch.equal(value, before[k]) for k, value in quantizer.state_dict().items())


@every
def test_gradients_are_finite_at_and_beyond_the_bounds(case):
    bounds = case.ready().eval()(case.ramp())[..., [0, -1]].detach()
    huge = torch.tensor([-3e38, -1e30, -1e4, -1e-30, 0.0, 1e-42, 1e4, 1e30, 3e38])
    x = torch.cat((bounds, huge.expand(*bounds.shape[:-1], -1), case.ramp(50)), -1)
    for learn in (True, False):
        quantizer = case.ready(learn_scale=learn)
        x = x.detach().clone().requires_grad_()
        quantizer(x).sum().backward()
        assert torch.isfinite(x.grad).all()
        assert x.grad.any()
        for parameter in quantizer.parameters():
            assert (parameter.grad is not None) == parameter.requires_grad == learn
            assert not learn or torch.isfinite(parameter.grad).all()


@every
def test_dtype_and_layout_stay(case):
    quantizer = case.ready()
    for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = case.data(1, dtype=kind).to(memory_format=torch.channels_last)
        out = quantizer(x.requires_grad_())
        out.sum().backward()
        assert (out.dtype, x.grad.dtype) == (kind, kind)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(out.detach(), quantizer(x.detach().contiguous()))
        if kind != torch.float64:
            assert torch.equal(quantizer.codes(x), quantizer.codes(x.float()))
        others = [x[..., 0], x[..., ::2, 1:3], x.detach()[..., :0]]
        if case.axis is None:
            others += [torch.tensor(0.5, dtype=kind), x[::2, :, 1]]
        for odd in others:
            assert quantizer(odd).shape == quantizer.codes(odd).shape == odd.shape


@every
def test_a_fixed_output_grid_needs_a_scale_after_it(case):
    small, large = case.ready(), case.build()
    large.calibrate(8 * case.data())
    fixed = torch.equal(small.levels(), large.levels())
    inputs_of_dorefa = case.name == "dorefa" and case.role == "input"  # from 0 to 1, as they are
    assert small.needs_scale_after(small.spec) == (fixed and not inputs_of_dorefa)


@every
def test_degenerate_data_give_finite_results(case):
    shape = (1, CHANNELS, 1) if case.axis == 1 else (CHANNELS, 1)
    for x in (
        torch.full((*shape, 4), 0.7),
        torch.zeros(*shape, 4),
        torch.full((*shape, 4), 1e-30),
        torch.full((1,) if case.axis is None else shape, 0.5),
    ):
        quantizer = case.build()
        quantizer.calibrate(x)
        assert quantizer.is_calibrated
        for tensor in (*results(quantizer, x), *quantizer.own_tensors(), quantizer.levels()):
            assert torch.isfinite(tensor).all()
        assert torch.equal(quantizer.eval()(x), quantizer.values(quantizer.codes(x)))


@settings(max_examples=200, deadline=None)
@given(
    case=st.sampled_from(CASES),
    seed=st.integers(0, 2**16),
    size=st.integers(1, 60),
    spread=st.floats(1e-3, 1e3),
)
def test_any_data_give_finite_results_in_the_order_of_the_input(case, seed, size, spread):
    quantizer = case.build()
    x = (case.data(seed, (size,)) * spread).sort(-1).values
    quantizer.calibrate(x)
    out, *gradients = results(quantizer, x)
    assert (out.diff() >= 0).all()
    assert quantizer.soft or torch.equal(out, quantizer.values(quantizer.codes(x)))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every
def test_what_is_not_ready_or_does_not_fit_is_refused(case):
    x, quantizer = case.data(), case.build()
    for use in (quantizer, quantizer.codes):
        with pytest.raises(RuntimeError, match="no scale yet"):
            use(x)
    quantizer.calibrate(x[..., :0])
    assert not quantizer.is_calibrated  # without elements
    assert quantizer(x[..., :0]).shape == (*x.shape[:-1], 0)
    for bad in (math.nan, math.inf):
        spoiled = x.clone()
        spoiled.view(-1)[3] = bad
        with pytest.raises(ValueError, match="NaN or inf"):
            quantizer.calibrate(spoiled)
    if not case.signed:
        with pytest.raises(ValueError, match="negative values"):
            quantizer.calibrate(x - 1)
    assert not quantizer.is_calibrated
    ready = case.ready()
    ready.attached = False
    ready.eval()(x)
    if ready.adapts:
        with pytest.raises(RuntimeError, match=r"tr_det\.core\.attach"):
            ready.train()(x)


@every
def test_copies_and_checkpoints_quantize_alike(case):
    quantizer, x = case.ready(), case.data(seed=1)
    loaded = case.build()
    loaded.load_state_dict(through_file(quantizer.state_dict()))
    for twin in (loaded, copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert twin.is_calibrated
        for ours, theirs in zip(results(twin, x), results(quantizer, x), strict=True):
            assert torch.equal(ours, theirs)
        with torch.no_grad():
            for tensor in twin.own_tensors():
                tensor.mul_(2)
        for ours, theirs in zip(twin.own_tensors(), quantizer.own_tensors(), strict=True):
            assert torch.equal(ours, 2 * theirs)


@every
def test_a_checkpoint_of_something_else_is_refused_in_one_line(case):
    state = case.ready().state_dict()
    others = [other for other in CASES if other[2:] == case[2:]]
    bits = [o for o in others if o.name == case.name and o.bits != case.bits]
    kinds = [o for o in others if o.name != case.name and o.bits == case.bits]
    for other in (*bits[:1], *kinds):
        quantizer = other.build()
        with pytest.raises(RuntimeError, match="the checkpoint has") as error:
            quantizer.load_state_dict(state)
        assert len(str(error.value).splitlines()) == 2  # torch's own head, and one line
        assert not quantizer.is_calibrated


def test_a_checkpoint_whose_bytes_are_no_text_is_refused():
    case = CASES[0]
    state = case.ready().state_dict()
    state["_extra_state"][0] = 0xA0  # begins no letter of UTF-8
    with pytest.raises(RuntimeError, match="the checkpoint has .*this model has"):
        case.build().load_state_dict(state)


@to_compile
def test_a_compiled_quantizer_gives_the_same_numbers(case):
    torch._dynamo.reset()
    eager, twin, x = case.ready(), case.build(), case.data(seed=1)
    twin.load_state_dict(eager.state_dict())
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(results(twin, x, compiled), results(eager, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (twin.seen is None) == (eager.seen is None)
    assert eager.seen is None or torch.equal(twin.seen, eager.seen)


@every
def test_recoding_counts_like_comparing(case):
    quantizer = case.ready()
    for which in (None, 0.3):
        if which and case.bits < 8 and case.role == "weight":
            x = case.data()
            quantizer.hold(torch.rand_like(x) < which, quantizer.codes(x))
        codes = quantizer.codes(case.data())
        for seed in (1, 1, 2):
            x, before = case.data(seed), codes.clone()
            count = quantizer.recode_(x, codes)
            assert torch.equal(codes, quantizer.codes(x))
            assert (count.shape, count.is_floating_point()) == ((), False)
            assert count == (codes != before).sum()


@weights
def test_held_weights_keep_their_level_and_get_no_gradient(case):
    quantizer, x = case.ready(), case.data(seed=1)
    first, second = torch.rand(2, *x.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    second &= ~first
    free = ~(first | second)
    codes = quantizer.codes(x)
    if case.bits == 8:
        with pytest.raises(ConfigError, match=r"^bits=8: must be at most 7"):
            quantizer.hold(first, codes)
        return
    plain = results(quantizer, x)
    quantizer.hold(first, codes)
    quantizer.hold(second, torch.full(x.shape, 1000))  # out of the grid
    assert torch.equal(quantizer.held != -128, ~free)
    expected = torch.where(first, codes, quantizer.high)
    moved = torch.where(free, x, case.data(seed=2))
    for twin in (quantizer, copy.deepcopy(quantizer), case.build()):
        twin.load_state_dict(through_file(quantizer.state_dict()))
        out, gradient, *of_scale = results(twin, moved)
        assert torch.equal(twin.codes(moved)[~free], expected[~free])
        assert torch.equal(out[~free], level_of(twin, expected, case)[~free])
        assert not gradient[~free].any()
        assert torch.equal(out[free], plain[0][free])
        assert torch.equal(gradient[free], plain[1][free])
        assert all(torch.isfinite(g).all() for g in of_scale)
        assert twin.codes(x).dtype == codes.dtype
    quantizer.load_state_dict(case.ready().state_dict())  # of a run in which nothing was held
    assert quantizer.held is None
