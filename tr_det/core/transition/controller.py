"""How the TALR follows the target (Lee et al., ICCV 2025): Eqs. 10, 11, S1 and S2.

All arguments are float32 tensors of one shape, one element per controller (layer), except the
momentum, a Python number; the rules are pure and read like the paper's lines. The paper's rule is
"additive".

Deviations from the paper: in S1 and S2 a running TR of zero (the start, or a layer that stands
still) is replaced by ``RATE_FLOOR``, and the ratio is held within ``MAX_RATIO``; the paper's own
S1 divides by zero there.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

RATE_FLOOR = 1e-8
MAX_RATIO = 2.0


def running_rate(previous: Tensor, rate: Tensor, momentum: float) -> Tensor:
    """Return the running TR, Eq. 10: ``K = m K' + (1 - m) k``, from K = 0, not bias-corrected."""
    return momentum * previous + (1.0 - momentum) * rate


def additive(
    talr: Tensor, running: Tensor, target: Tensor, gain: Tensor, momentum: float
) -> Tensor:
    """Return the next TALR, Eq. 11: ``U = max(0, U' + eta (R - K))``; ``gain`` is eta."""
    del momentum
    return (talr + gain * (target - running)).clamp_min(0.0)


def multiplicative(
    talr: Tensor, running: Tensor, target: Tensor, gain: Tensor, momentum: float
) -> Tensor:
    """Return the next TALR, Eq. S1: ``U = U' R / K``."""
    del gain, momentum
    return talr * _ratio(running, target)


def momentum(
    talr: Tensor, running: Tensor, target: Tensor, gain: Tensor, momentum: float
) -> Tensor:
    """Return the next TALR, Eq. S2: ``U = m U' + (1 - m) U' R / K``."""
    del gain
    return talr * (momentum + (1.0 - momentum) * _ratio(running, target))


def _ratio(running: Tensor, target: Tensor) -> Tensor:
    return (target / running.clamp_min(RATE_FLOOR)).clamp_max(MAX_RATIO)


UpdateRule = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]

UPDATE_RULES: dict[str, UpdateRule] = {
    "additive": additive,
    "multiplicative": multiplicative,
    "momentum": momentum,
}
"""Name -> rule ``(talr, running, target, gain, momentum) -> talr``."""
