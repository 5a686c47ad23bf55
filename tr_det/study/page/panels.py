"""The charts of runs: which records are drawn, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tr_det.core.methods.telemetry import LAYERS
from tr_det.runtime.metrics import Record
from tr_det.study.curves import Curve, curve, layer_curve, layers_of
from tr_det.study.page.charts import Chart
from tr_det.study.page.lines import Line, line_chart

MOST_POINTS, SMALL_POINTS = 300, 60
"""Points of a line, in a chart and in one of many; more do not show."""
SPREAD = (0.1, 0.9)
"""Quantiles over layers between which a band lies."""
BAND = "Band: 10 % to 90 % of the layers."


class Quantity(NamedTuple):
    """Something that is recorded over a run.

    Attributes:
        labels: name in the records, without that of a layer -> label; the first that is there.
        of_layers: whether each layer has its own.
        percent: whether it is a share.
        colour: place in the palette.
        dashed: how it is drawn.
        if_any: left out where it is 0 throughout.
    """

    labels: dict[str, str]
    of_layers: bool = False
    percent: bool = False
    colour: int = 0
    dashed: bool = False
    if_any: bool = False

    def read(self, records: Sequence[Record], most: int) -> tuple[str, Curve] | None:
        """Return the label and the curve of at most so many points, None without records."""
        for name, label in self.labels.items():
            found = layer_curve(records, name) if self.of_layers else curve(records, [name])
            if len(found) and not (self.if_any and found.values.max() <= 0):
                thin = thinned(found, most)
                return label, Curve(thin.updates, thin.values * (100 if self.percent else 1))
        return None


class Panel(NamedTuple):
    """A chart over updates."""

    title: str
    y_label: str
    quantities: tuple[Quantity, ...]
    log: bool = False
    zero: bool = True

    def chart(self, lines: Sequence[Line], note: str = "") -> Chart | None:
        """Return the chart with some lines, None without any."""
        return line_chart(
            self.title,
            lines,
            y_label=self.y_label,
            log=self.log,
            zero=self.zero,
            first=0,
            note=note,
        )


METRIC = Quantity({"bbox/AP": "AP", "test/accuracy": "accuracy"})
LOSS = Quantity({"total_loss": "loss", "loss": "loss"})
RUNNING = Quantity({"running": "running TR", "rate": "TR of an update"}, True, percent=True)
TARGET = Quantity({"target": "target TR"}, True, percent=True, colour=1, dashed=True)
TALR = Quantity({"talr": "TALR of quantized weights"}, True, colour=2)
RATE = Quantity({"lr": "learning rate of the rest"}, colour=7, dashed=True)
OSCILLATING = Quantity({"tr/oscillating": "oscillating"}, percent=True, colour=1)
FROZEN = Quantity({"tr/frozen": "frozen"}, percent=True, if_any=True)
STEP_SIZE = Quantity({"step_size": "effective step size"}, True, colour=4)
DISTANCE = Quantity({"distance": "distance"}, True, colour=3)

_CODES, _WEIGHTS = "% of codes that change per update", "% of quantized weights"
EVALUATION = Panel("Metric on the test set", "0–100", (METRIC,), zero=False)
SIZES = Panel("Effective step size", "mean change of levels per update", (STEP_SIZE,), log=True)
DISTANCES = Panel("Distance to transition points", "mean, in codes", (DISTANCE,), zero=False)

OF_RUN = (
    EVALUATION,
    Panel("Training loss", "loss", (LOSS,)),
    Panel("Transition rate", _CODES, (RUNNING, TARGET)),
    Panel("Learning rates", "per update", (TALR, RATE), log=True),
    Panel("Oscillating and frozen weights", _WEIGHTS, (OSCILLATING, FROZEN)),
    SIZES,
    DISTANCES,
)
"""Charts of a run."""
OF_STUDY = (
    EVALUATION,
    Panel("Transition rate; dashed: its target", _CODES, (RUNNING, TARGET)),
    Panel("TALR", "per update", (TALR,), log=True),
    Panel("Oscillating weights", _WEIGHTS, (OSCILLATING,)),
    Panel("Frozen weights", _WEIGHTS, (FROZEN,)),
    SIZES,
    DISTANCES,
)
"""Charts in which each run is a line."""


def run_charts(records: Sequence[Record], most: int = MOST_POINTS) -> list[Chart]:
    """Return the charts of a run, as far as its metrics.json has records."""
    charts = []
    for panel in OF_RUN:
        lines, has_band = [], False
        for quantity in panel.quantities:
            found = quantity.read(records, most)
            if found is not None:
                label, values = found
                low, high = _band(values)
                has_band = has_band or bool(low)
                style: dict[str, Any] = {"colour": quantity.colour, "dashed": quantity.dashed}
                lines.append(Line(label, *_mean(values), low, high, **style))
        charts.append(panel.chart(lines, BAND if has_band else ""))
    return [chart for chart in charts if chart is not None]


def compared_charts(runs: Sequence[tuple[str, Sequence[Record]]], most: int) -> list[Chart]:
    """Return charts in which each run is a line: the mean over its layers.

    Args:
        runs: labels and records.
        most: points of a line.
    """
    charts = []
    for panel in OF_STUDY:
        lines = []
        for colour, (label, records) in enumerate(runs):
            for quantity in panel.quantities:
                found = quantity.read(records, most)
                if found is not None:
                    told = f"{label}, target" if quantity.dashed else label
                    style = {"colour": colour, "dashed": quantity.dashed}
                    in_legend = not quantity.dashed
                    lines.append(Line(told, *_mean(found[1]), in_legend=in_legend, **style))  # type: ignore[arg-type]
        charts.append(panel.chart(lines))
    return [chart for chart in charts if chart is not None]


def layer_charts(records: Sequence[Record], most: int = SMALL_POINTS) -> list[Chart]:
    """Return a small chart of the effective step size of each layer, all on one scale."""
    found = STEP_SIZE.read(records, most)
    values = torch.empty(0) if found is None else found[1].values
    positive = values[(values > 0) & values.isfinite()]
    if found is None or not len(positive):
        return []
    # An update in which nothing transits has no logarithm: the axis ends where few are lower.
    span = (torch.quantile(positive, 0.01).item(), positive.max().item())
    updates = found[1].updates.tolist()
    charts = []
    for layer, values in zip(layers_of(records, "step_size"), found[1].values.T, strict=True):
        one = Line(layer, updates, values.tolist(), colour=STEP_SIZE.colour)
        style: dict[str, Any] = {"log": True, "first": 0, "span": span, "small": True}
        charts.append(line_chart(layer, [one], y_label="", **style))
    return [chart for chart in charts if chart is not None]


def layer_rows(records: Sequence[Record]) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """Return titles, and each layer's last values under them."""
    titles = {
        "running": "running TR, %",
        "target": "target TR, %",
        "rate": "TR of the last update, %",
        "talr": "TALR",
        "step_size": "step size",
        "distance": "distance, codes",
    }
    last = next((row for row in reversed(records) if layers_of([row], "distance")), {})
    layers = layers_of([last], "distance")
    known = [key for key in titles if layers_of([last], key) == layers]
    rows = [
        (
            layer,
            [last[f"{LAYERS}{layer}/{key}"] * (100 if "%" in titles[key] else 1) for key in known],
        )
        for layer in layers
    ]
    return [titles[key] for key in known], rows


def thinned(found: Curve, most: int) -> Curve:
    """Return a curve of at most so many points: means over records that follow one another."""
    every = -(-len(found) // most)
    if every <= 1:
        return found
    parts = range(0, len(found), every)
    return Curve(
        torch.stack([found.updates[i : i + every].double().mean() for i in parts]),
        torch.stack([found.values[i : i + every].mean(0) for i in parts]),
    )


def _mean(found: Curve) -> tuple[list[float], list[float]]:
    return found.updates.tolist(), found.mean().tolist()


def _band(found: Curve) -> tuple[list[float], list[float]]:
    if found.values.shape[1] < 3:
        return [], []
    low, high = torch.quantile(found.values, torch.tensor(SPREAD, dtype=torch.float64), dim=1)
    return low.tolist(), high.tolist()
