"""A picture of a dataset's boxes beside the anchors that are to cover them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tr_det.detection.data.anchors import Anchors, InputBoxes, best_ious
from tr_det.runtime.files import written_aside


def draw_boxes_and_anchors(path: Path, boxes: InputBoxes, anchors: Mapping[str, Anchors]) -> None:
    """Draw sizes, aspect ratios, and how well each of several sets of anchors covers the boxes.

    Args:
        path: the picture to write, PNG.
        boxes: at the size that the network sees.
        anchors: heading -> anchors.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    width, height = (boxes.edges[:, 2:] - boxes.edges[:, :2]).unbind(1)
    panels = {
        "size (root of area, px)": (width * height).sqrt(),
        "aspect ratio (height / width)": height / width,
    }
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    for axes, (title, values) in zip((first, second), panels.items(), strict=True):
        low, high = values.log().min().item(), values.log().max().item()
        bins = [2.718281828 ** (low + (high - low) * part / 40) for part in range(41)]
        axes.hist(values.numpy(), bins=bins, color="0.75")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(LogLocator(subs=()))
        axes.set_xlabel(title)
        axes.set_ylabel("boxes")
    for number, (heading, one) in enumerate(anchors.items()):
        colour = f"C{number}"
        marks = {
            first: sorted({side for level in one.sizes for side in level}),
            second: sorted({ratio for level in one.ratios for ratio in level}),
        }
        for axes, places in marks.items():
            row = -0.03 - 0.035 * number  # below the axis, a row for each set
            axes.plot(
                places,
                [row] * len(places),
                "^",
                color=colour,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                label=f"anchors, {heading}",
            )
        ious = best_ious(boxes, one).sort(descending=True).values
        shares = [100 * (index + 1) / len(ious) for index in range(len(ious))]
        third.plot(ious.numpy(), shares, colour, linewidth=2, label=heading)
    for axes in (first, second):
        axes.tick_params(axis="x", pad=14)
        axes.legend(fontsize=8)
    for limit in (0.4, 0.5):
        third.axvline(limit, color="0.5", linestyle=":")
    third.set_xlim(0, 1)
    third.set_ylim(0, 101)
    third.set_xlabel("best IoU with an anchor, at least (dotted: 0.4, 0.5)")
    third.set_ylabel("% of boxes")
    third.legend(loc="lower left")
    third.grid(alpha=0.3)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=80)
