"""Lambda from the transition rates of plain training: ``tr_factor="auto"``. Ours, not the paper's.

Table S4 of the paper shows that accuracy depends on lambda over orders of magnitude; the paper
tunes it by hand. Lambda has to match the rate at which a usable learning rate makes weights
transit. So for the first updates (`probe_steps`) every layer trains at its base learning rate, as
with the plain optimizer, and its transitions are counted; then

    lambda = SCALE * median over layers of  K_l / (1 - m^n) / sqrt(b_l)

(K after bias correction). With SCALE = 2 a target that falls to zero along a cosine or a line is,
in the mean over the run, the rate that plain training shows at its start. The median, because the
rates of most layers differ by small factors only, but a layer without transitions, or one with a
few weights, can be far off.

The probe is part of the run: nothing is repeated or undone, and the target's schedule starts at
update 0. The base learning rate must be one that plain training can use.
"""

from __future__ import annotations

import math
import statistics

AUTO = "auto"
SCALE = 2.0
SMALLEST, LARGEST = 1e-5, 0.1
"""Bounds of the result; a run that trains is never outside."""


def probe_steps(total_steps: int) -> int:
    """Return the length of the probe: a twentieth of the run, from 2 to 200 updates.

    >>> [probe_steps(steps) for steps in (10, 600, 90_000)]
    [2, 30, 200]
    """
    return min(max(total_steps // 20, 2), 200)


def factor_from(rates: list[float], bits: list[int]) -> float:
    """Return lambda from the rates of plain training.

    Args:
        rates: measured rate of each layer, at least one.
        bits: weight bit-width of each.

    >>> round(factor_from([0.01, 0.02, 0.5], [4, 4, 4]), 6)
    0.02
    """
    found = SCALE * statistics.median(
        rate / math.sqrt(width) for rate, width in zip(rates, bits, strict=True)
    )
    return min(max(found, SMALLEST), LARGEST)
