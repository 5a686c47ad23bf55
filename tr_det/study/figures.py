"""Pictures of the TR paper's analyses from the courses of runs: Figs. 1, S3 and S4.

matplotlib is imported when a picture is drawn; nothing touches its global state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tr_det.study.course import Course, Curve

INK, BLUE, RED, GREEN = "#222222", "#1f5fa8", "#c8452e", "#2b8a57"
COLOURS = (BLUE, RED, GREEN, "#7a4fa3", "#d98e04", "#3aa6b9", "#8c564b", "#7f7f7f")
"""Of the runs in a picture, which can be no more."""


def draw_tr_scheduling(path: str | os.PathLike[str], course: Course, title: str) -> None:
    """Draw Fig. S3: running and target TR, TALR, latent weights, distances.

    Args:
        path: the picture to write, PNG.
        course: of a run with TR scheduling.
        title: one line.
    """
    figure, axes = _panels(2, 2, title)
    rate, talr, histogram, distance = axes
    _plot(rate, course.running, 100 * course.running.mean(), color=BLUE, label="running TR")
    target = 100 * course.target.mean()
    _plot(rate, course.target, target, color=RED, dashes=(4, 2), label="target TR")
    rate.set_ylabel("% of codes per update")
    _plot(talr, course.talr, color=GREEN, label="TALR, mean over layers")
    _plot(talr, course.rate, color=INK, linewidth=1, label="learning rate of the rest")
    for colour, (step, latents) in zip(COLOURS, course.latents.items(), strict=False):
        counts, edges = torch.histogram(latents, bins=60)
        share = 100 * counts / len(latents)
        histogram.stairs(share, edges, color=colour, label=f"update {step}")
    for point in course.transition_points.tolist():
        histogram.axvline(point, color=INK, linewidth=0.8, linestyle=":")
    histogram.set_xlabel(f"normalised latent weights of {course.layer}; dotted: transition points")
    histogram.set_ylabel("% of weights")
    _plot(distance, course.distance, color=BLUE, label="mean distance to the nearest point")
    distance.set_ylabel("units of codes")
    for axis in (rate, talr, distance):
        axis.set_xlabel("update")
    _save(figure, axes, path)


def draw_step_sizes(
    path: str | os.PathLike[str], courses: Mapping[str, Course], title: str
) -> None:
    """Draw Fig. 1: effective step sizes, distances and accuracies of several runs.

    Args:
        path: the picture to write, PNG.
        courses: label -> course of a run.
        title: one line.
    """
    figure, axes = _panels(1, 3, title)
    size, distance, accuracy = axes
    for colour, (label, course) in zip(COLOURS, courses.items(), strict=False):
        sizes = smooth(course.step_size.mean(), course.window)
        _plot(size, course.step_size, sizes, color=colour, label=label)
        _plot(distance, course.distance, color=colour, label=label)
        _plot(accuracy, course.accuracy, color=colour, label=label)
    size.set_yscale("log")
    averaged = next(iter(courses.values())).averaged  # all are of one source
    size.set_ylabel(f"average effective step size, mean of {averaged}")
    distance.set_ylabel("mean distance to the nearest transition point")
    _finish_accuracy(accuracy, courses)
    for axis in axes:
        axis.set_xlabel("update")
    _save(figure, axes, path)


def draw_step_decay(
    path: str | os.PathLike[str], courses: Mapping[str, Course], title: str
) -> None:
    """Draw Fig. S4: accuracies of runs whose LR or target is stepped, and the LR beside the TALR.

    Args:
        path: the picture to write, PNG.
        courses: label -> course of a run, plain or TR-scheduled.
        title: one line.
    """
    figure, axes = _panels(1, 2, title)
    accuracy, rate = axes
    for colour, (label, course) in zip(COLOURS, courses.items(), strict=False):
        _plot(accuracy, course.accuracy, color=colour, label=label)
        scheduled = len(course.talr) > 0
        curve = course.talr if scheduled else course.rate
        _plot(rate, curve, color=colour, label=f"{label}: {'TALR' if scheduled else 'LR'}")
    _finish_accuracy(accuracy, courses)
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


def _plot(axes: Any, curve: Curve, values: Tensor | None = None, **style: Any) -> None:
    """Plot the means of a curve, or what was made of them; a line of one point needs a marker."""
    marker = "o" if len(curve) == 1 else ""
    axes.plot(curve.updates, curve.mean() if values is None else values, marker=marker, **style)


def _finish_accuracy(axes: Any, courses: Mapping[str, Course]) -> None:
    axes.set_ylabel(f"accuracy on {next(iter(courses.values())).images}, %")
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
