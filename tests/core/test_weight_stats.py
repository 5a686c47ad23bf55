"""Eq. 5: the share of codes that changed; Eq. S3: by how much on average; distances (Fig. S3d)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import loss, pair, train

from tr_det.core import CodeBook, build_quantizer
from tr_det.core.weight_stats import SIGNALS, distances, effective_step_size

CODES = st.lists(st.tuples(*[st.integers(-128, 127)] * 3), min_size=1, max_size=40).map(
    lambda rows: np.array(rows).T
)
"""Three code vectors of one length, shape (3, n)."""


def update(codes, previous, step=1.0, signed=True, held=None):
    """Return the update of weights that go from some 8-bit codes to others."""
    quantizer = build_quantizer("lsq", 8 if held is None else 7, signed, role="weight")
    with torch.no_grad():
        quantizer.scale.fill_(step)
    weight = step * torch.tensor(previous, dtype=torch.float32)
    if held is not None:
        quantizer.hold(torch.tensor(held), torch.tensor(previous))
    book = CodeBook()
    book.add("w", weight, quantizer)
    book.begin(keep_previous=True)
    weight.copy_(step * torch.tensor(codes, dtype=torch.float32))
    return book.finish()["w"]


@pytest.mark.parametrize(
    ("codes", "previous", "step", "rate", "size"),
    [
        ([3], [3], 0.25, 0.0, 0.0),
        ([1, 0, -2, 1], [1, 0, 0, 0], 0.5, 0.5, 0.375),
        ([[0, 1], [2, 3], [4, 5]], [[0, 0], [2, -8], [7, 5]], 1.0, 0.5, 2.5),
        ([127], [-128], 2**-7, 1.0, 255 / 128),
        (np.zeros((0, 3)), np.zeros((0, 3)), 1.0, 0.0, 0.0),
        ([255, 0], [0, 255], 0.5, 1.0, 0.5 * 255),  # unsigned: must not wrap
    ],
)
def test_signals_by_hand(codes, previous, step, rate, size) -> None:
    change = update(codes, previous, step, signed=np.max(codes, initial=0) < 128)
    for signal, expected in ((SIGNALS["transition_rate"], rate), (effective_step_size, size)):
        result = signal(change)
        assert (result.shape, result.dtype) == ((), torch.float32)
        assert result.item() == expected


def test_held_weights_count_neither_as_changed_nor_as_weights() -> None:
    codes, previous = [5, 5, 5, 5, 5], [5, 4, 4, 4, 5]
    assert update(codes, previous, held=[False] * 5).rate().item() == pytest.approx(0.6)
    some = update(codes, previous, held=[True, True, False, False, False])
    assert some.rate().item() == pytest.approx(2 / 3)
    assert some.codes.tolist() == [5, 4, 5, 5, 5]
    assert update(codes, previous, held=[True] * 5).rate().item() == 0.0


@given(CODES, st.sampled_from([1.0, 0.5, 0.125]))
def test_signals_are_their_formulas(codes, step) -> None:
    a, b, c = codes
    change = update(a, b, step)
    rate, size = (SIGNALS[key](change).item() for key in ("transition_rate", "effective_step_size"))
    assert rate == pytest.approx(np.mean(a != b))
    assert size == pytest.approx(step * np.mean(np.abs(a - b)))
    single = update(np.clip(b + np.sign(c), -128, 127), b, step)
    assert effective_step_size(single).item() == pytest.approx(step * single.rate().item())


@pytest.mark.parametrize("name", ["fixed_grid", "ewgs", "lsbq"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_distances_are_those_to_the_nearest_of_all_points(name, bits) -> None:
    quantizer = build_quantizer(name, bits, signed=True)
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    quantizer.calibrate(x[:100])
    by_hand = (quantizer.normalized(x)[:, None] - quantizer.transition_points()).abs().amin(1)
    torch.testing.assert_close(distances(quantizer, x), by_hand)


@pytest.mark.parametrize("signal", SIGNALS)
def test_an_optimizer_follows_the_signal_and_others_may_read_its_book(signal) -> None:
    model, optimizer = pair(tr_signal=signal)
    train(model, optimizer, range(4))
    optimizer.zero_grad()
    loss(model, 4).backward()
    optimizer.codes.begin(keep_previous=True)
    optimizer.step()
    updates = optimizer.codes.moved()
    assert tuple(updates) == optimizer.transition_metrics().names
    signals = torch.stack([SIGNALS[signal](update) for update in updates.values()])
    torch.testing.assert_close(optimizer.transition_metrics().rate, signals)
    assert signals.sum() > 0


def test_without_quantized_weights_there_is_nothing() -> None:
    book = CodeBook()
    book.begin()
    assert book.finish() == {}
