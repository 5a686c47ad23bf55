"""Histograms of normalised latent weights beside the points where their codes change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tr_det.study.latents import StoredWeights, first_and_last_checkpoint
from tr_det.study.page.charts import Chart
from tr_det.study.page.lines import Line, line_chart
from tr_det.study.page.recorded import RecordedRun
from tr_det.study.page.scale import number

MOST_LAYERS = 6
BINS = 48
"""At least."""
MOST_ABOVE = 1.3
"""What is clipped would make the rest flat: its bars are cut off above the highest of the rest."""


def weight_histograms(run: RecordedRun) -> tuple[list[Chart], str]:
    """Return the histograms of some layers at the first and the last checkpoint.

    Args:
        run: whose checkpoints are read.

    Returns:
        the charts, and why there are none.
    """
    if run.bits[0] > 8:
        return [], "The weights of this run are in full precision."
    paths = first_and_last_checkpoint(run.folder)
    if not paths:
        return [], "No checkpoint of this run's training is left in its folder."
    try:
        stored = [StoredWeights(path, run.weight_quantizer) for path in paths]
        layers = stored[-1].layers
        every = max(1, -(-len(layers) // MOST_LAYERS))
        charts = [
            _chart(
                layer,
                [(s.updates, s.normalized(layer)) for s in stored],
                stored[-1].transition_points(layer),
            )
            for layer in layers[every // 2 :: every]
        ]
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        return [], f"The checkpoints cannot be read: {' '.join(str(error).split())}"
    return [chart for chart in charts if chart], ""


def _chart(
    layer: str, weights: Sequence[tuple[int, Tensor]], points: Sequence[float]
) -> Chart | None:
    """Return the chart of a layer's weights by update, in order; the last are filled."""
    low, high = points[0] - 0.5, points[-1] + 0.5
    bins = len(points) * -(-BINS // len(points))  # edges at transition points
    shares, lines = {}, []
    for update, values in reversed(weights):
        inside = values.float().clamp(low, high)
        counts, edges = torch.histogram(inside, bins, range=(low, high))
        share = shares[update] = 100 * counts / len(values)
        first = len(shares) == 1
        style: dict[str, Any] = {"colour": 0 if first else 7, "filled": first}
        lines.append(Line(f"update {number(update, 9)}", *_stairs(edges, share), **style))
    top = MOST_ABOVE * max(share[1:-1].max().item() for share in shares.values())
    ends = [f"{number(share.item(), 2)} %" for share in next(iter(shares.values()))[[0, -1]]]
    cut = any(share.max() > top for share in shares.values())
    return line_chart(
        layer,
        lines,
        x_label="normalised latent weight, codes",
        y_label="% of the weights",
        rules=points,
        span=(0.0, top) if cut and top > 0 else None,
        note=f"Clipped, in the outermost bars: {' and '.join(ends)}." if cut else "",
    )


def _stairs(edges: Tensor, heights: Tensor) -> tuple[list[float], list[float]]:
    xs = edges.repeat_interleave(2)[1:-1]
    return xs.tolist(), heights.repeat_interleave(2).tolist()
