"""Rules by which the TALR follows the target (Lee et al., ICCV 2025): Eqs. 10, 11, S1 and S2.

Tensors are float32 and of one shape, (layers,) or 0-d: one element per controller. The paper's rule
is "additive"; ours, "pi", is in `pi.py`.

Deviations from the paper, both in S1 and S2, whose ratio R/K is undefined at K = 0 (the start, or a
layer without transitions):
  * K is taken as at least ``RATE_FLOOR`` and the ratio as at most ``MAX_RATIO``;
  * the TALR is held between ``MIN_TALR`` and ``MAX_TALR`` times the base learning rate: a layer
    without gradient would drive it to infinity, and from zero, where a target of zero leads (the
    start of a warm-up), a product cannot rise again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

RATE_FLOOR = 1e-8
MAX_RATIO = 2.0
MIN_TALR, MAX_TALR = 1e-6, 1e3


@dataclass(frozen=True)
class Feedback:
    """The inputs of a rule before update t.

    Attributes:
        talr: U_{t-1}, learning-rate units.
        running: K_t.
        target: R_t.
        previous_running: K_{t-1}.
        previous_target: R_{t-1}; R_0 at t = 0.
        first_target: R_0.
        base: base learning rate, U_{-1}.
        gain: eta of Eq. 11.
        momentum: m of Eq. 10.
        correction: bias correction of K_t, 1 - m^n after a layer's n rates; 0 before the first.
        previous_correction: likewise of K_{t-1}.
    """

    talr: Tensor
    running: Tensor
    target: Tensor
    previous_running: Tensor
    previous_target: Tensor
    first_target: Tensor
    base: Tensor
    gain: Tensor
    momentum: float
    correction: Tensor
    previous_correction: Tensor


def running_rate(previous: Tensor, rate: Tensor, momentum: float) -> Tensor:
    """Return the running TR, Eq. 10: ``K = m K' + (1 - m) k``, from K = 0, not bias-corrected."""
    return momentum * previous + (1.0 - momentum) * rate


def additive(talr: Tensor, running: Tensor, target: Tensor, gain: Tensor) -> Tensor:
    """Return the next TALR, Eq. 11: ``U = max(0, U' + eta (R - K))``; ``gain`` is eta."""
    return (talr + gain * (target - running)).clamp_min(0.0)


def multiplicative(talr: Tensor, running: Tensor, target: Tensor) -> Tensor:
    """Return the next TALR, Eq. S1: ``U = U' R / K``."""
    return talr * (target / running.clamp_min(RATE_FLOOR)).clamp_max(MAX_RATIO)


def momentum(talr: Tensor, running: Tensor, target: Tensor, momentum: float) -> Tensor:
    """Return the next TALR, Eq. S2: ``U = m U' + (1 - m) U' R / K``."""
    return momentum * talr + (1.0 - momentum) * multiplicative(talr, running, target)


def bounded(talr: Tensor, base: Tensor) -> Tensor:
    """Return the TALR within its bounds; ``base`` is the base learning rate."""
    return talr.maximum(MIN_TALR * base).minimum(MAX_TALR * base)


UpdateRule = Callable[[Feedback], Tensor]

UPDATE_RULES: dict[str, UpdateRule] = {
    "additive": lambda f: additive(f.talr, f.running, f.target, f.gain),
    "multiplicative": lambda f: bounded(multiplicative(f.talr, f.running, f.target), f.base),
    "momentum": lambda f: bounded(momentum(f.talr, f.running, f.target, f.momentum), f.base),
}
"""Name -> rule."""
