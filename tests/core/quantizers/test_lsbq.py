"""LSBQ against greedy fits in float64, and the refits in a run."""

import numpy as np
import pytest
import torch
from quantizer_kit import FEW_BITS, check_refused, every_axis, per_channel
from torch import nn

from tr_det.core import (
    SGDT,
    Method,
    QuantConfig,
    attach,
    build_quantizer,
    quantize_model,
    tr_param_groups,
)
from tr_det.core.optim.groups import without_transition

P = [-1, -0.7, -0.2, 0, 0.1, 0.3, 0.45, 0.9, 1.6]


def greedy(weights, bits):
    """Return the magnitudes v_1 to v_b of one row, float64."""
    rest, found = np.asarray(weights, np.float64).ravel(), []
    for _ in range(bits):
        found.append(np.abs(rest).mean())
        rest = rest - found[-1] * np.where(rest < 0, -1, 1)
    return found


def levels_of(magnitudes):
    """Return all sums of +-v, ascending."""
    levels = np.zeros(1)
    for v in magnitudes:
        levels = np.concatenate((levels - v, levels + v))
    return np.sort(levels)


def nearest(weights, levels):
    """Return the index of the nearest level, the upper one at a tie."""
    far = np.abs(np.asarray(weights, np.float64).ravel()[:, None] - levels)
    return (len(levels) - 1 - far[:, ::-1].argmin(1)).reshape(np.shape(weights))


@pytest.mark.parametrize(
    ("bits", "positive", "magnitudes"),
    [
        (1, [0.583333], [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (2, [0.168519, 0.998148], [2, 2, 1, 1, 1, 1, 1, 2, 2]),
        (3, [0.018313, 0.35535, 0.811317, 1.184979], [4, 3, 2, 1, 1, 2, 2, 3, 4]),
    ],
)
def test_greedy_levels_of_torchaos_parq(bits, positive, magnitudes):
    """The levels are torchao's; at 3 bits another of them is chosen for 0.1.

    The nearest level of 0.1 is 0.018313; the signs of torchao's fit give -0.018313.
    """
    weight = torch.tensor(P, requires_grad=True)
    quantizer = build_quantizer("lsbq", bits, True)
    quantizer.calibrate(weight)
    expected = torch.tensor([-v for v in reversed(positive)] + positive)
    torch.testing.assert_close(quantizer.levels(), expected, atol=1e-6, rtol=0)
    quantized = [(-1 if p < 0 else 1) * positive[m - 1] for p, m in zip(P, magnitudes)]
    out = quantizer.eval()(weight)
    torch.testing.assert_close(out.detach(), torch.tensor(quantized), atol=1e-6, rtol=0)
    grad = torch.arange(1.0, 10.0)
    out.backward(grad)
    assert torch.equal(weight.grad, grad)


def test_two_bits_at_the_optimum():
    """Against torchao's vector, and against every split of random rows."""
    quantizer = build_quantizer("lsbq", 2, True, optimal=True)
    quantizer.calibrate(torch.tensor(P))
    expected = torch.tensor([-1.05, -0.21, 0.21, 1.05])
    torch.testing.assert_close(quantizer.levels(), expected, atol=1e-6, rtol=0)
    error = (quantizer.eval()(torch.tensor(P)) - torch.tensor(P)).norm().item()
    assert error == pytest.approx(0.756307, abs=1e-6)
    rows = np.random.default_rng(0).standard_t(3, (4, 30))
    quantizer = build_quantizer("lsbq", 2, True, optimal=True, per_channel=True, channels=4)
    quantizer.calibrate(torch.tensor(rows, dtype=torch.float32))
    for row, shown in zip(rows, quantizer.levels().double().numpy()):
        ordered = np.sort(np.abs(row))
        means = [(ordered[:i].mean(), ordered[i:].mean()) for i in range(1, 30)]
        errors = [(np.abs(ordered[:, None] - pair).min(1) ** 2).sum() for pair in means]
        low, high = means[int(np.argmin(errors))]
        np.testing.assert_allclose(shown, [-high, -low, low, high], rtol=1e-6)


@pytest.mark.parametrize("bits", FEW_BITS)
@every_axis
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_codes_and_gradients_row_by_row(bits, axis, layout):
    x = np.random.default_rng(bits).normal(size=(4, 5, 3, 3)).astype(np.float32)
    quantizer = build_quantizer("lsbq", bits, True, **per_channel(axis, x.shape))
    given = torch.tensor(x).to(memory_format=layout).requires_grad_()
    quantizer.calibrate(given)
    rows = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, 0)
    codes, values = np.empty(rows.shape, int), np.empty(rows.shape)
    shown = quantizer.levels().double().numpy().reshape(len(rows), -1)
    for row in range(len(rows)):
        levels = levels_of(greedy(rows[row], bits))
        np.testing.assert_allclose(shown[row], levels, atol=2e-6)
        middle = (levels[1:] + levels[:-1]) / 2
        assert np.abs(rows[row].ravel()[:, None] - middle).min() > 1e-7  # no tie to decide
        codes[row] = nearest(rows[row], levels)
        values[row] = levels[codes[row]]
    back = (lambda a: a.reshape(x.shape)) if axis is None else (lambda a: np.moveaxis(a, 0, axis))
    agree = quantizer.codes(given).numpy() == back(codes) - 2 ** (bits - 1)
    assert agree.mean() > 0.99  # float32 may see a weight beside a midpoint on the other side
    out = quantizer.eval()(given)
    np.testing.assert_allclose(out.detach().numpy()[agree], back(values)[agree], atol=2e-6)
    grad = torch.randn(x.shape)
    out.backward(grad)
    assert torch.equal(given.grad, grad)


class Recorder(Method):
    """Keeps the codes of the last update and what changed them."""

    def reads(self, step):
        return True

    def after_update(self, step, updates):
        update = updates["0.weight"]
        self.codes, self.by_weight = update.codes.clone(), update.by_weight.item()
        self.by_scale = 0 if update.by_scale is None else update.by_scale.item()


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("period", [0, 1, 3])
@pytest.mark.parametrize("transition", [False, True])
def test_levels_follow_the_weight_and_their_jumps_are_counted_apart(by_channel, period, transition):
    torch.manual_seed(0)
    bits = 2
    model = nn.Sequential(nn.Linear(12, 20), nn.LayerNorm(20))
    options = {"per_channel": by_channel, "period": period}
    quantize_model(
        model, QuantConfig(weight_bits=bits, weight_quantizer="lsbq", weight_options=options)
    )
    groups = tr_param_groups(model, 1.0)
    if transition:
        optimizer = SGDT(groups, lr=1.0, total_steps=12)
    else:
        optimizer = torch.optim.SGD(without_transition(groups), lr=1.0)
    recorder = Recorder()
    attach([recorder], model, optimizer, 12)
    weight, quantizer = model[0].weight, model[0].weight_quantizer

    def rows():
        wide = weight.detach().double().numpy()
        return wide if by_channel else wide.reshape(1, -1)

    def fitted():
        return [levels_of(greedy(row, bits)) for row in rows()]

    def coded(levels):
        found = np.stack([nearest(row, own) for row, own in zip(rows(), levels)])
        return found.reshape(weight.shape) - 2 ** (bits - 1)

    levels, jumps = fitted(), 0
    for step in range(12):
        optimizer.zero_grad()
        before = coded(levels)
        x = torch.randn(16, 12).relu()
        (model(x)[:, :12] - x).square().mean().backward()
        optimizer.step()
        moved = coded(levels)
        if period and step % period == 0:
            levels = fitted()
        after = coded(levels)
        np.testing.assert_array_equal(recorder.codes.numpy(), after)
        assert recorder.by_weight == (moved != before).sum()
        assert recorder.by_scale == (after != moved).sum()
        jumps += recorder.by_scale
        shown = quantizer.levels().double().numpy().reshape(len(levels), -1)
        np.testing.assert_allclose(shown, np.stack(levels), atol=1e-6)
        if transition:
            group = next(g for g in optimizer.param_groups if "quantizer" in g)
            assert group["transition_rate"].item() == pytest.approx(recorder.by_weight / 240)
    assert (jumps > 0) == (period > 0)


def test_what_it_cannot_quantize_is_refused():
    check_refused("signed", "lsbq", 2, False, role="weight")
    check_refused("role", "lsbq", 2, True, role="input")
    for period in (-1, 1.5):
        check_refused("period", "lsbq", 2, True, period=period)
    check_refused("prox", "lsbq", 2, True, prox="soft")
    check_refused("end", "lsbq", 2, True, prox="parq", start=0.5, end=0.5)
    for steepness in (0, 2000):
        check_refused("steepness", "lsbq", 2, True, prox="parq", steepness=steepness)
    check_refused("prox", "lsbq", 2, True, end=0.8)
    check_refused("own_signs", "lsbq", 3, True, own_signs=True, period=2)
