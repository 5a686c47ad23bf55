"""The demo's two pictures: transition-rate curves, and detections side by side.

matplotlib is imported when a picture is drawn; nothing touches its global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tr_det.runtime.files import written_aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Box (x, y, width, height) in image pixels, class index, score or None for ground truth.
Detection = tuple[Sequence[float], int, float | None]

_HEADROOM = 3.5  # how far above the highest mean a panel shows single layers


def draw_tr(
    path: Path,
    series: Mapping[str, Any],
    title: str,
    learning_rate: Sequence[tuple[int, float]] = (),
) -> None:
    """Draw target and running transition rate above the TALR; single layers thin.

    Args:
        path: the picture to write, PNG.
        series: what `report.tr_series` returns.
        title: one line.
        learning_rate: (iteration, rate) pairs of the plain learning rate.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(title)
    rate, talr = figure.subplots(2, 1, sharex=True)
    iterations = series["iteration"]
    panels = ((rate, "running", 100, "C0", "running TR"), (talr, "talr", 1, "C2", "TALR"))
    for axes, key, factor, colour, name in panels:
        for layer in series["layers"].values():
            axes.plot(iterations, factor * np.array(layer[key]), colour, linewidth=0.8, alpha=0.3)
        mean = factor * np.array(series[key])
        axes.plot(iterations, mean, colour, linewidth=2.5, label=f"{name}, mean of the layers")
        if any(mean):
            axes.set_ylim(0, min(axes.get_ylim()[1], _HEADROOM * max(mean)))
    target = 100 * np.array(series["target"])
    rate.plot(iterations, target, "C3--", linewidth=2.5, label="target TR")
    rate.set_ylabel("transition rate\n(% of codes changed per update)")
    if not iterations:
        rate.set_title("no transition rates in this run")
    talr.plot(*zip(*learning_rate, strict=True), "k:", label="plain learning rate")
    talr.set_ylabel("transition-adaptive LR (TALR)")
    talr.set_xlabel("iteration")
    for axes in (rate, talr):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right")
    _save(figure, path)


def draw_detections(
    path: Path,
    rows: Sequence[tuple[np.ndarray, Sequence[Sequence[Detection]]]],
    class_names: Sequence[str],
    columns: Sequence[str],
    score_threshold: float = 0.4,
) -> None:
    """Draw a grid: one image per row, one list of boxes per column, one colour per class.

    Args:
        path: the picture to write, PNG.
        rows: per image its (H, W, 3) uint8 RGB pixels and, for each column, its detections.
        class_names: names by class index.
        columns: headings.
        score_threshold: detections with a lower score are left out.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    heights = [image.shape[0] / image.shape[1] for image, _ in rows]
    figure = Figure(figsize=(4 * len(columns), 4 * sum(heights)), layout="constrained")
    figure.supxlabel(f"detections with a score of at least {score_threshold:g}")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for axes, heading in zip(grid[0], columns, strict=True):
        axes.set_title(heading)
    for line, (image, lists) in zip(grid, rows, strict=True):
        for axes, detections in zip(line, lists, strict=True):
            axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
            axes.set_axis_off()
            for (x, y, width, height), index, score in detections:
                if score is not None and score < score_threshold:
                    continue
                colour = colormaps["hsv"](index / len(class_names))
                box = Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=2)
                axes.add_patch(box)
                text = class_names[index] if score is None else f"{class_names[index]} {score:.2f}"
                label = {"facecolor": "white", "edgecolor": colour, "pad": 1}
                top = max(y, 0.06 * image.shape[0])  # room for the label within the image
                axes.text(x, top, text, fontsize=9, va="bottom", bbox=label, clip_on=True)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=100)
