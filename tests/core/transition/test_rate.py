"""Eq. 5: the share of codes that changed; Eq. S3: by how much on average."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tr_det.core.transition import SIGNALS, transition_rate
from tr_det.core.transition.rate import effective_step_size

CODES = st.lists(st.tuples(*[st.integers(-128, 127)] * 3), min_size=1, max_size=40).map(
    lambda rows: torch.tensor(rows, dtype=torch.int8).T.contiguous()
)
"""Three code vectors of one length, shape (3, n)."""


@pytest.mark.parametrize(
    ("codes", "previous", "rate"),
    [
        ([3], [3], 0.0),
        ([3], [2], 1.0),
        ([1, 0, -2, 1], [1, 0, -1, 1], 0.25),
        ([-1, 1, 1, -1], [1, -1, -1, 1], 1.0),
        ([[0, 1], [2, 3], [4, 5]], [[0, 0], [2, -8], [7, 5]], 0.5),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
def test_rate_counts_changes_whatever_their_size(codes, previous, rate, dtype) -> None:
    result = transition_rate(torch.tensor(codes, dtype=dtype), torch.tensor(previous, dtype=dtype))
    assert result.shape == ()
    assert result.dtype == torch.float32
    assert result.item() == rate


def test_unsigned_codes_do_not_wrap() -> None:
    low, high = torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([255, 0], dtype=torch.uint8)
    assert transition_rate(low, high).item() == 1.0


@given(CODES)
def test_rate_is_a_metric_within_0_and_1(codes: Tensor) -> None:
    a, b, c = codes
    assert 0.0 <= transition_rate(a, b).item() <= 1.0
    assert transition_rate(a, a).item() == 0.0
    assert transition_rate(a, b).item() == transition_rate(b, a).item()
    through_b = transition_rate(a, b).item() + transition_rate(b, c).item()
    assert transition_rate(a, c).item() <= through_b + 1e-6


@given(CODES, st.randoms(use_true_random=False))
def test_rate_is_the_same_in_any_order_and_shape(codes: Tensor, random) -> None:
    order = list(range(codes.shape[1]))
    random.shuffle(order)
    a, b = codes[0], codes[1]
    shuffled = transition_rate(a[order].unsqueeze(0), b[order].unsqueeze(0))
    assert shuffled.item() == transition_rate(a, b).item()


@pytest.mark.parametrize(
    ("codes", "previous", "gamma", "size"),
    [
        ([3], [3], 4, 0.0),
        ([1, 0, -2, 1], [1, 0, 0, 0], 2, 0.375),
        ([-1, 1], [1, 1], 1, 1.0),
        ([127], [-128], 128, 255 / 128),
    ],
)
def test_effective_step_size_is_the_mean_change_of_levels(codes, previous, gamma, size) -> None:
    codes, previous = (torch.tensor(x, dtype=torch.int8) for x in (codes, previous))
    assert effective_step_size(codes, previous, gamma).item() == size
    assert SIGNALS["effective_step_size"](codes, previous, gamma).item() == size


@given(CODES, st.sampled_from([1, 2, 8, 128]))
def test_effective_step_size_is_at_least_the_rate_over_gamma(codes: Tensor, gamma: int) -> None:
    a, b, _ = codes
    size, rate = effective_step_size(a, b, gamma).item(), transition_rate(a, b).item()
    assert SIGNALS["transition_rate"](a, b, gamma).item() == rate
    assert size == effective_step_size(b, a, gamma).item()
    assert size >= rate / gamma - 1e-6


@given(CODES, st.sampled_from([1, 2, 8, 128]))
def test_effective_step_size_equals_the_rate_over_gamma_for_single_steps(codes, gamma) -> None:
    a, b = codes[0] // 2, codes[0] // 2 + codes[1].sign()
    size, rate = effective_step_size(a, b, gamma).item(), transition_rate(a, b).item()
    assert size == pytest.approx(rate / gamma, abs=1e-6)
