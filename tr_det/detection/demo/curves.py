"""The demo's picture of transition-rate curves.

matplotlib is imported when a picture is drawn, so importing this module is cheap. Nothing touches
matplotlib's global state (no pyplot, no backend switch): Agg renders directly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tr_det.runtime.files import written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_tr"]

_INK = "#222222"
_BLUE, _RED, _GREEN = "#1f5fa8", "#c8452e", "#2b8a57"


def draw_tr(
    path: str | os.PathLike[str],
    series: Mapping[str, Any],
    title: str,
    learning_rate: float | Iterable[tuple[float, float]] | None = None,
) -> None:
    """Draws target against running transition rate, and the TALR under it, at 1000 x 700 pixels.

    Means over layers are thick, single layers thin. A layer that would flatten the rest leaves the
    panel at the top, and the panel says how many do.

    Args:
        path: the picture to write; its suffix is the format (PNG without one).
        series: what `report.tr_series` returns, also after a round trip through JSON.
            Empty lists, None, NaN and a missing target (plain SGD) are fine.
        title: one line.
        learning_rate: the plain learning rate for comparison: a number or (iteration, rate) pairs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.10, hspace=0.04)
    figure = Figure(figsize=(10, 7), dpi=100, layout=layout, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False, fontsize=14, color=_INK)

    iteration = series.get("iteration")
    target, running, talr = (
        _points(iteration, series.get(key)) for key in ("target", "running", "talr")
    )
    layers_running, layers_talr = (_layer_points(series, key) for key in ("running", "talr"))

    if any(map(len, (target, running, talr, *layers_running, *layers_talr))):
        rate_axes, talr_axes = figure.subplots(2, 1, sharex=True, height_ratios=(1.15, 1))
        in_percent = np.array([1.0, 100.0])
        top = _Panel(rate_axes)
        top.draw_layers([points * in_percent for points in layers_running], _BLUE, "running TR")
        top.draw(target * in_percent, "target TR", color=_RED, dashes=(5, 2))
        top.draw(running * in_percent, "running TR, mean over layers", color=_BLUE)
        top.finish("transition rate\n(% of codes changed per update)")
        if not len(target):
            rate_axes.set_title("no target TR in this run", fontsize=10, loc="left", color=_INK)

        bottom = _Panel(talr_axes)
        bottom.draw_layers(layers_talr, _GREEN, "TALR")
        bottom.draw(talr, "TALR, mean over layers", color=_GREEN)
        if learning_rate is not None:
            bottom.draw_reference(learning_rate)
        bottom.finish("transition-adaptive LR\n(TALR, step per unit of gradient)")
        talr_axes.set_xlabel("iteration (optimizer updates)", color=_INK)
    else:
        axes = figure.subplots()
        axes.set_axis_off()
        _say(axes, "no TR data")

    with written_aside(path) as aside:
        canvas.print_figure(aside, format=aside.suffix[1:].lower() or "png")


class _Panel:
    """One set of axes whose vertical range follows the thick curves, not the wildest layer."""

    # A layer may be so many times higher than the highest thick curve before it is cut off.
    HEADROOM = 3.5

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.drawn = False
        self._main_top = 0.0
        self._layer_tops: list[float] = []

    def draw(self, points: np.ndarray, label: str, color: str, dashes: Any = None) -> None:
        """Draws a thick curve; a single point gets a marker, none draws nothing."""
        if not len(points):
            return
        self.drawn = True
        self._main_top = max(self._main_top, points[:, 1].max())
        self.axes.plot(
            points[:, 0],
            points[:, 1],
            color=color,
            linewidth=2.6,
            linestyle=(0, dashes) if dashes else "-",
            marker="o" if len(points) == 1 else "",
            markersize=9,
            solid_capstyle="round",
            label=label,
            zorder=4 if dashes else 3,
        )

    def draw_layers(self, layers: Sequence[np.ndarray], color: str, what: str) -> None:
        """Draws one faint thin line per layer, with one legend entry for all of them."""
        layers = [points for points in layers if len(points)]
        for number, points in enumerate(layers):
            self.drawn = True
            self._layer_tops.append(points[:, 1].max())
            self.axes.plot(
                points[:, 0],
                points[:, 1],
                color=color,
                linewidth=0.9,
                alpha=max(0.28, min(0.6, 6 / len(layers))),
                marker="." if len(points) == 1 else "",
                label=f"{what}, each of {len(layers)} layers" if number == 0 else None,
                zorder=2,
            )

    def draw_reference(self, value: float | Iterable[tuple[float, float]]) -> None:
        """Draws the plain learning rate, dotted: a level line or its own curve."""
        style: dict[str, Any] = {
            "color": _INK,
            "linewidth": 1.6,
            "linestyle": ":",
            "label": "plain learning rate",
            "zorder": 3,
        }
        if not isinstance(value, Iterable):
            points = _points([0], [value])
            if len(points):
                self.axes.axhline(points[0, 1], **style)
        else:
            pairs = list(value)
            points = _points([pair[0] for pair in pairs], [pair[1] for pair in pairs])
            if len(points):
                self.axes.plot(points[:, 0], points[:, 1], **style)
        if len(points):
            self.drawn = True
            self._main_top = max(self._main_top, points[:, 1].max())

    def finish(self, ylabel: str) -> None:
        """Sets range, labels, grid and legend; a panel without curves says so."""
        from matplotlib.ticker import MaxNLocator

        layer_top = max(self._layer_tops, default=0.0)
        top = max(self._main_top, layer_top)
        if self._main_top > 0:
            top = min(top, self.HEADROOM * self._main_top)
        limit = 1.06 * top if top > 0 else 1.0
        cut = sum(value > limit for value in self._layer_tops)
        self.axes.set_ylim(0, limit)
        self.axes.margins(x=0.015)
        self.axes.set_ylabel(ylabel, color=_INK)
        self.axes.grid(True, color="#e3e3e3", linewidth=0.8)
        self.axes.set_axisbelow(True)
        self.axes.tick_params(colors=_INK, labelsize=10)
        self.axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
        self.axes.xaxis.set_major_locator(
            MaxNLocator(8, steps=(1, 2, 5, 10), integer=True, min_n_ticks=1)
        )
        for side in ("top", "right"):
            self.axes.spines[side].set_visible(False)
        if self.drawn:
            # Faint lines would be invisible in the legend: give its handles the full colour. The
            # entry for the layers was drawn first and reads best last.
            handles, labels = self.axes.get_legend_handles_labels()
            order = sorted(range(len(labels)), key=lambda i: "each of" in labels[i])
            legend = self.axes.legend(
                [handles[i] for i in order],
                [labels[i] for i in order],
                loc="upper right",
                frameon=True,
                framealpha=0.9,
                edgecolor="none",
                fontsize=10,
                title=f"{cut} of {len(self._layer_tops)} layers exceed this panel" if cut else None,
                title_fontsize=9,
            )
            for line in legend.get_lines():
                line.set_alpha(1.0)
        else:
            self.axes.set_yticks([])
            _say(self.axes, "not logged in this run")


def _say(axes: Axes, text: str) -> None:
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 20, "color": "#777777"}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **style)


def _points(x: Iterable[Any] | None, y: Iterable[Any] | None) -> np.ndarray:
    """Pairs two columns into an (N, 2) float array without None, NaN and infinities."""
    if x is None or y is None:
        return np.empty((0, 2))
    columns = [np.array([math.nan if v is None else v for v in c], dtype=float) for c in (x, y)]
    length = min(map(len, columns))
    points: np.ndarray = np.stack([column[:length] for column in columns], axis=1)
    finite: np.ndarray = points[np.isfinite(points).all(axis=1)]
    return finite


def _layer_points(series: Mapping[str, Any], key: str) -> list[np.ndarray]:
    """Returns the points of every layer that has some; "iteration" may be the means' own."""
    found = []
    for layer in (series.get("layers") or {}).values():
        points = _points(layer.get("iteration", series.get("iteration")), layer.get(key))
        if len(points):
            found.append(points)
    return found
