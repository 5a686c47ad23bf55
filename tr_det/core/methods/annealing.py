"""Numbers that are annealed over a run.

Paper: *Overcoming Oscillations in Quantization-Aware Training*, Nagel et al., ICML 2022, anneals
the weight of its dampening loss and the threshold of its freezing:

    v(t) = v_1 + (v_0 - v_1) (1 + cos(pi (t - t_0) / (T - t_0))) / 2,  t_0 = start T

and v = v_0 before t_0. T is the number of updates of the run, t counts them from 1.
"""

from __future__ import annotations

import math

from tr_det.core.errors import check, is_number


def cosine(step: int, total: int, first: float, last: float, start: float) -> float:
    """Return the number for an update; after the end of the run, the last one.

    Args:
        step: t, 1-based.
        total: T.
        first: v_0.
        last: v_1, reached at t = T.
        start: share of the run for which v_0 lasts, in [0, 1).

    >>> [round(cosine(t, 1000, 0.0, 0.1, 0.25), 9) for t in (1, 250, 500, 625, 750, 1000)]
    [0.0, 0.0, 0.025, 0.05, 0.075, 0.1]
    >>> [round(cosine(t, 1000, 0.1, 0.011, 0.25), 9) for t in (250, 500, 625, 750, 1000)]
    [0.1, 0.07775, 0.0555, 0.03325, 0.011]
    """
    begin, step = start * total, min(step, total)
    if step <= begin:
        return first
    share = (step - begin) / (total - begin)
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * share))


def check_start(start: object) -> None:
    """Raise ConfigError unless it is a share of the run, less than the whole."""
    check("start", start, is_number(start) and 0 <= start < 1, "in [0, 1)")
