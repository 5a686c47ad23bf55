"""Pictures of the TR paper's analyses from traced runs: Figs. 1, S3 and S4.

matplotlib is imported when a picture is drawn; nothing touches its global state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tr_det.classification.experiment import Outcome, Trace

INK, BLUE, RED, GREEN = "#222222", "#1f5fa8", "#c8452e", "#2b8a57"
COLOURS = (BLUE, RED, GREEN, "#7a4fa3")


def draw_tr_scheduling(path: str | os.PathLike[str], outcome: Outcome, title: str) -> None:
    """Draw Fig. S3: running and target TR, TALR, latent weights, distances.

    Args:
        path: the picture to write, PNG.
        outcome: of a watched run with TR scheduling.
        title: one line.
    """
    trace = _traced(outcome)
    figure, axes = _panels(2, 2, title)
    rate, talr, histogram, distance = axes
    rate.plot(100 * outcome.running.mean(1), color=BLUE, label="running TR")
    rate.plot(100 * outcome.target.mean(1), color=RED, dashes=(4, 2), label="target TR")
    rate.set_ylabel("% of codes per update")
    talr.plot(outcome.talr.mean(1), color=GREEN, label="TALR, mean over layers")
    talr.plot(trace.rate, color=INK, linewidth=1, label="learning rate of the rest")
    for colour, (step, latents) in zip(COLOURS, trace.latents.items(), strict=False):
        counts, edges = torch.histogram(latents, bins=60)
        share = 100 * counts / len(latents)
        histogram.stairs(share, edges, color=colour, label=f"update {step}")
    for point in trace.transition_points.tolist():
        histogram.axvline(point, color=INK, linewidth=0.8, linestyle=":")
    histogram.set_xlabel(f"normalised latent weights of {trace.layer}; dotted: transition points")
    histogram.set_ylabel("% of weights")
    distance.plot(trace.distance.mean(1), color=BLUE, label="mean distance to the nearest point")
    distance.set_ylabel("units of codes")
    for axis in (rate, talr, distance):
        axis.set_xlabel("update")
    _save(figure, axes, path)


def draw_step_sizes(
    path: str | os.PathLike[str], outcomes: Mapping[str, Outcome], title: str
) -> None:
    """Draw Fig. 1: effective step sizes, distances and accuracies of several runs.

    Args:
        path: the picture to write, PNG.
        outcomes: label -> outcome of a watched run.
        title: one line.
    """
    figure, axes = _panels(1, 3, title)
    size, distance, accuracy = axes
    for colour, (label, outcome) in zip(COLOURS, outcomes.items(), strict=False):
        trace = _traced(outcome)
        size.plot(smooth(trace.step_size.mean(1)), color=colour, label=label)
        distance.plot(trace.distance.mean(1), color=colour, label=label)
        accuracy.plot(*_columns(trace.accuracy), color=colour, label=label)
    size.set_yscale("log")
    size.set_ylabel("average effective step size, mean of 20 updates")
    distance.set_ylabel("mean distance to the nearest transition point")
    _finish_accuracy(accuracy)
    for axis in axes:
        axis.set_xlabel("update")
    _save(figure, axes, path)


def draw_step_decay(
    path: str | os.PathLike[str], outcomes: Mapping[str, Outcome], title: str
) -> None:
    """Draw Fig. S4: accuracies of runs whose LR or target is stepped, and the LR beside the TALR.

    Args:
        path: the picture to write, PNG.
        outcomes: label -> outcome of a watched run, plain or TR-scheduled.
        title: one line.
    """
    figure, axes = _panels(1, 2, title)
    accuracy, rate = axes
    for colour, (label, outcome) in zip(COLOURS, outcomes.items(), strict=False):
        trace = _traced(outcome)
        accuracy.plot(*_columns(trace.accuracy), color=colour, label=label)
        scheduled = len(outcome.talr) > 0
        curve = outcome.talr.mean(1) if scheduled else trace.rate
        rate.plot(curve, color=colour, label=f"{label}: {'TALR' if scheduled else 'LR'}")
    _finish_accuracy(accuracy)
    rate.set_yscale("log")
    for axis in axes:
        axis.set_xlabel("update")
    _save(figure, axes, path)


def smooth(values: Tensor, width: int = 20) -> Tensor:
    """Return the mean of the last ``width`` values, of fewer at the start.

    >>> smooth(torch.tensor([2.0, 4.0, 6.0]), width=2).tolist()
    [2.0, 3.0, 5.0]
    """
    sums = torch.cumsum(values.double(), 0)
    before = torch.cat([torch.zeros(min(width, len(sums))), sums[:-width]])[: len(sums)]
    counts = torch.arange(1, len(sums) + 1).clamp(max=width)
    return ((sums - before) / counts).to(values.dtype)


def _traced(outcome: Outcome) -> Trace:
    if outcome.trace is None:
        raise ValueError("outcome without trace: the run must have watch=True")
    return outcome.trace


def _columns(points: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(points), list(points.values())


def _finish_accuracy(axes: Any) -> None:
    axes.set_ylabel("accuracy on held-out digits, %")
    axes.set_ylim(top=100)


def _panels(rows: int, columns: int, title: str) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * columns, 3.6 * rows), dpi=100, layout="constrained")
    figure.suptitle(title, color=INK)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.grid(alpha=0.25)
    return figure, axes


def _save(figure: Any, axes: list[Any], path: str | os.PathLike[str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for axis in axes:
        axis.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(os.fspath(path))
