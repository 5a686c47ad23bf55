"""Pictures of the TR paper's analyses of recorded runs: Figs. 1, S3 and S4.

matplotlib is imported when a picture is drawn; nothing touches its global state.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tr_det.study.curves import Curve
from tr_det.study.history import History

INK, BLUE, RED, GREEN = "#222222", "#1f5fa8", "#c8452e", "#2b8a57"
COLOURS = (BLUE, RED, GREEN, "#7a4fa3", "#d98e04", "#3aa6b9", "#8c564b", "#7f7f7f")
"""Of the runs in a picture, which can be no more."""
MOST_AVERAGED = 20


def draw(
    path: str | os.PathLike[str], name: str, histories: Mapping[str, History], title: str
) -> None:
    """Draw a figure.

    Args:
        path: the picture to write, PNG.
        name: one of `FIGURES`.
        histories: of runs by their labels; for tr-scheduling one with checkpoints.
        title: one line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (rows, columns), plot = FIGURES[name]
    figure = Figure(figsize=(5 * columns, 3.6 * rows), dpi=100, layout="constrained")
    figure.suptitle(title, color=INK)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.set_xlabel("update")
        axis.grid(alpha=0.25)
    plot(*axes, histories)
    for axis in axes:
        axis.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(os.fspath(path))


def _tr_scheduling(
    rate: Any, talr: Any, histogram: Any, distance: Any, histories: Mapping[str, History]
) -> None:
    """Fig. S3: running and target TR, TALR, latent weights, distances."""
    (history,) = histories.values()
    _plot(rate, history.running, 100 * history.running.mean(), color=BLUE, label="running TR")
    target = 100 * history.target.mean()
    _plot(rate, history.target, target, color=RED, dashes=(4, 2), label="target TR")
    rate.set_ylabel("% of codes per update")
    _plot(talr, history.talr, color=GREEN, label="TALR, mean over layers")
    _plot(talr, history.lr, color=INK, linewidth=1, label="learning rate of the rest")
    for colour, (step, latents) in zip(COLOURS, history.latents.items(), strict=False):
        counts, edges = torch.histogram(latents, bins=60)
        share = 100 * counts / len(latents)
        histogram.stairs(share, edges, color=colour, label=f"update {step}")
    for point in history.transition_points.tolist():
        histogram.axvline(point, color=INK, linewidth=0.8, linestyle=":")
    histogram.set_xlabel(f"normalised latent weights of {history.layer}; dotted: transition points")
    histogram.set_ylabel("% of weights")
    _plot(distance, history.distance, color=BLUE, label="mean distance to the nearest point")
    distance.set_ylabel("units of codes")


def _step_sizes(size: Any, distance: Any, accuracy: Any, histories: Mapping[str, History]) -> None:
    """Fig. 1: effective step sizes, distances and accuracies."""
    for colour, (label, history) in zip(COLOURS, histories.items(), strict=False):
        # Few records must not all be averaged.
        width = min(MOST_AVERAGED, max(1, len(history.step_size) // 20))
        sizes = smooth(history.step_size.mean(), width)
        _plot(size, history.step_size, sizes, color=colour, label=label)
        _plot(distance, history.distance, color=colour, label=label)
    size.set_yscale("log")
    size.set_ylabel(f"average effective step size, mean of ≤{MOST_AVERAGED} values")
    distance.set_ylabel("mean distance to the nearest transition point")
    _accuracies(accuracy, histories)


def _step_decay(accuracy: Any, rate: Any, histories: Mapping[str, History]) -> None:
    """Fig. S4: accuracies of runs whose LR or target is stepped, and the LR beside the TALR."""
    for colour, (label, history) in zip(COLOURS, histories.items(), strict=False):
        scheduled = len(history.talr) > 0
        curve = history.talr if scheduled else history.lr
        _plot(rate, curve, color=colour, label=f"{label}: {'TALR' if scheduled else 'LR'}")
    rate.set_yscale("log")
    _accuracies(accuracy, histories)


FIGURES: dict[str, tuple[tuple[int, int], Callable[..., None]]] = {
    "tr-scheduling": ((2, 2), _tr_scheduling),
    "step-sizes": ((1, 3), _step_sizes),
    "step-decay": ((1, 2), _step_decay),
}
"""Rows and columns of panels, and what draws them."""


def _accuracies(axes: Any, histories: Mapping[str, History]) -> None:
    for colour, (label, history) in zip(COLOURS, histories.items(), strict=False):
        _plot(axes, history.accuracy, color=colour, label=label)
    axes.set_ylabel("accuracy on test images, %")
    axes.set_ylim(top=100)


def smooth(values: Tensor, width: int) -> Tensor:
    """Return the mean of the last ``width`` values, of fewer at the start; shape (records,).

    >>> smooth(torch.tensor([2.0, 4.0, 6.0]), width=2).tolist()
    [2.0, 3.0, 5.0]
    """
    padding = values.new_full((width - 1,), math.nan)
    return torch.cat([padding, values]).unfold(0, width, 1).nanmean(1)


def _plot(axes: Any, curve: Curve, values: Tensor | None = None, **style: Any) -> None:
    """Plot the means of a curve, or what was made of them; a line of one point needs a marker."""
    marker = "o" if len(curve) == 1 else ""
    axes.plot(curve.updates, curve.mean() if values is None else values, marker=marker, **style)
