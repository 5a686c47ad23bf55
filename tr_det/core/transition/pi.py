"""The TALR rule "pi": proportional-integral control of log(TALR) with feed-forward.

Ours, not the paper's. The rate that a TALR causes is about proportional to it, with factors that
differ between layers by orders of magnitude. The additive rule moves the TALR by ``eta (R - K)``,
whose size is unrelated to the TALR's: too slow for some layers, too coarse for others, and after a
long error the sum of past errors must first be undone. Here

    e_t = log((R_t + f) / (K_t + f)),  f = FLOOR * R_0
    log U_t = log U_{t-1} + log((R_t + f) / (R_{t-1} + f)) + kp (e_t - e_{t-1}) + ki e_t

- The first increment is feed-forward: the target is known in advance, so the TALR moves with it
  instead of waiting for an error.
- A change of the target counts once more through the proportional term, on purpose: K lags behind
  the rate, and this lead makes K itself meet a target that moves smoothly.
- In logarithms one pair of gains suits every layer, and the TALR cannot become negative.
- K_t is the running TR after bias correction, ``K_t / (1 - m^n)`` after a layer's n rates. It lags
  by tau = 1 / (1 - m) updates. With ``kp = 1`` and ``ki = kp / tau`` the controller's zero cancels
  that lag, and the closed loop settles like a first-order one, in about tau updates.
- The velocity form has no integral to wind up: at the TALR's bounds (``MAX_TALR`` and ``MIN_TALR``
  times the base learning rate) increments are lost instead of stored.
- Until a layer has a rate, U = ``base (R_t + f) / (R_0 + f)``: the base learning rate,
  lowered if the target warms up or a layer's first gradient comes late.
- The floor f keeps the logarithm finite as the target goes to zero; one step changes the TALR by
  at most a factor of ``e^MAX_STEP``.

Limits: where the target jumps (the "step" schedule, a warm-up of fewer than tau updates) the lead
is too much or is cut by ``MAX_STEP``, and feedback needs about tau updates to make up for it; a
layer without gradient misses the feed-forward of those updates.

``default_momentum`` derives m from the run's length, so that the loop is quick enough: tau is the
run's length over 45, at least 5 and at most the paper's 100 updates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tr_det.core.transition.rules import UPDATE_RULES, Feedback, bounded

KP = 1.0
FLOOR = 0.01
TINY = 1e-12
MAX_STEP = 0.5


def default_momentum(total_steps: int) -> float:
    """Return m for a run of that many updates.

    >>> [round(default_momentum(steps), 3) for steps in (300, 3_000, 90_000)]
    [0.85, 0.985, 0.99]
    """
    return 1.0 - 1.0 / min(max(total_steps / 45.0, 5.0), 100.0)


def pi(f: Feedback) -> Tensor:
    """Return the next TALR, by the formula above."""
    floor = (FLOOR * f.first_target).clamp_min(TINY)
    error = _error(f.target, f.running, f.correction, floor)
    before = _error(f.previous_target, f.previous_running, f.previous_correction, floor)
    change = torch.log((f.target + floor) / (f.previous_target + floor))
    change = change + KP * (1.0 - f.momentum) * error
    change = change + torch.where(f.previous_correction > 0, KP * (error - before), 0.0)
    talr = f.talr * change.clamp(-MAX_STEP, MAX_STEP).exp()
    start = f.talr * (f.target + floor) / (f.first_target + floor)
    return torch.where(f.correction > 0, bounded(talr, f.base), start)


def _error(target: Tensor, running: Tensor, correction: Tensor, floor: Tensor) -> Tensor:
    return torch.log((target + floor) / (running / correction.clamp_min(TINY) + floor))


UPDATE_RULES["pi"] = pi
