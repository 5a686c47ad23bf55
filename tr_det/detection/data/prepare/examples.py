"""The picture of annotated images that everybody should look at before training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tr_det.export.images import opened
from tr_det.runtime.files import written_aside

COUNT, COLUMNS = 12, 4


def draw_examples(path: Path, folder: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw images of the training and test parts with their boxes, one colour per class.

    Args:
        path: the picture to write, PNG.
        folder: of the images.
        tables: name of a part -> content of its COCO file; "train" and "test" are drawn.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    chosen = [
        (part, entry)
        for part, n in (("train", 8), ("test", 4))
        for entry in _spread(tables[part]["images"], n)
    ]
    categories = tables["train"]["categories"]
    colours = {
        entry["id"]: colormaps["tab10" if len(categories) <= 10 else "hsv"](
            number if len(categories) <= 10 else number / len(categories)
        )
        for number, entry in enumerate(categories)
    }
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3.4 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (part, entry) in zip(grid.flat, chosen, strict=False):
        axes.imshow(opened(folder / entry["file_name"]).convert("RGB"))
        axes.set_title(f"{part}: {entry['file_name']}"[:48], fontsize=9)
        for note in tables[part]["annotations"]:
            if note["image_id"] == entry["id"]:
                x, y, w, h = note["bbox"]
                style = ":" if note["iscrowd"] else "-"
                colour = colours[note["category_id"]]
                box = Rectangle((x, y), w, h, fill=False, edgecolor=colour, linestyle=style)
                axes.add_patch(box)
    handles = [Patch(color=colours[entry["id"]], label=entry["name"]) for entry in categories[:20]]
    figure.legend(handles=handles, loc="outside upper center", ncols=10)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=80)


def _spread(entries: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return so many entries, evenly spread.

    >>> _spread([1, 2, 3, 4, 5], 2)
    [1, 3]
    """
    step = max(1, len(entries) // count)
    return entries[::step][:count]
