#!/usr/bin/env python
"""Say what a dataset's boxes are like, how well a detector's anchors fit, and propose better ones.

tools/analyze_dataset.py NAME_OR_JSON [--config-file F] [--output P.png] [KEY VALUE ...]

NAME is registered by the config (DATASETS.REGISTER) or by Detectron2. Sizes are those that the
network sees: of test images after INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST. An anchor covers a box if
they overlap by an IoU of at least 0.5; below 0.4 it is background.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tr_det.runtime.cli import one_line_errors

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
PICTURES = (".png", ".pdf", ".svg", ".jpg")
CONFIG = ROOT / "configs/BCCD/retinanet_R18_half_fp.yaml"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and analyze."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="NAME_OR_JSON")
    parser.add_argument("--config-file", type=Path, default=CONFIG, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="picture; default: output/analysis/NAME.png")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE")
    args = parser.parse_intermixed_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with one_line_errors():
        analyze(args)


def analyze(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from tr_det.core.errors import check
    from tr_det.detection.config.reading import load_config
    from tr_det.detection.data.anchors import anchors_from, boxes_at_input, pairs, propose
    from tr_det.detection.data.boxes_picture import draw_boxes_and_anchors
    from tr_det.detection.data.coco_file import check_coco_file

    output = args.output or Path("output/analysis") / f"{Path(args.data).stem}.png"
    check("--output", str(output), output.suffix in PICTURES, f"a file ending in {PICTURES}")
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    file = json_file(args.data)
    check_coco_file(str(file), scored=False)
    coco = json.loads(file.read_text(encoding="utf-8"))
    boxes = boxes_at_input(coco, cfg)
    current = anchors_from(cfg)
    proposal = propose(boxes, current)
    for line in class_table(coco):
        print(line)
    width, height = (boxes.edges[:, 2:] - boxes.edges[:, :2]).unbind(1)
    print(f"\nbox at the input's size   {quantile_heads()}")
    print(f"size, root of area, px    {quantiles((width * height).sqrt())}")
    print(f"aspect ratio, h / w       {quantiles(height / width)}")
    print(f"\n{'anchors':26}IoU >= 0.5  IoU >= 0.4  median IoU")
    print(coverage_line(f"of {args.config_file.name}"[:25], boxes, current))
    if proposal == current:
        print("no others of as many were found to fit better")
        draw_boxes_and_anchors(output, boxes, {"now": current})
    else:
        print(coverage_line("proposed", boxes, proposal))
        print(f"\n  {shlex.join(pairs(proposal))}")
        draw_boxes_and_anchors(output, boxes, {"now": current, "proposed": proposal})
    print(f"\n{output}: the picture")


def json_file(data: str) -> Path:
    """Return the annotations of a registered dataset, or the path itself.

    Raises:
        ValueError: it is neither, or a dataset without a COCO file.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from tr_det.detection.data.datasets import NAMES

    if data in DatasetCatalog.list():
        if data in NAMES.values():
            DatasetCatalog.get(data)  # builds the embedded dataset
        file = Path(MetadataCatalog.get(data).get("json_file", ""))
    else:
        file = Path(data)
    if not file.is_file():
        raise ValueError(
            f"NAME_OR_JSON={data!r}: must be a registered dataset or a COCO file; "
            f"there is no file {file}"
        )
    return file


def class_table(coco: dict[str, Any]) -> list[str]:
    """Return a line for each class: its boxes and the images that have some."""
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    boxes = Counter(note["category_id"] for note in coco["annotations"])
    pairs = {(note["category_id"], note["image_id"]) for note in coco["annotations"]}
    images = Counter(category for category, _ in pairs)
    longest = max(map(len, [*names.values(), "class"]))
    total, count = sum(boxes.values()), len(coco["images"])
    lines = [f"{'class':{longest}}  {'boxes':>7}  {'share':>6}  {'images':>7}"]
    for number, name in sorted(names.items(), key=lambda pair: -boxes[pair[0]]):
        share = 100 * boxes[number] / total
        lines.append(f"{name:{longest}}  {boxes[number]:7}  {share:5.1f}%  {images[number]:7}")
    empty = count - len({note["image_id"] for note in coco["annotations"]})
    return [*lines, f"{total} boxes in {count} images, {empty} of them without a box"]


def quantile_heads() -> str:
    """Return the heading of what `quantiles` returns."""
    return f"{'least':>7}{'5 %':>7}{'median':>8}{'95 %':>7}{'most':>7}"


def quantiles(values: Tensor) -> str:
    """Return five quantiles as text."""
    order = values.sort().values
    places = (order[round(q * (len(order) - 1))].item() for q in (0, 0.05, 0.5, 0.95, 1))
    least, low, median, high, most = (f"{place:.3g}" for place in places)
    return f"{least:>7}{low:>7}{median:>8}{high:>7}{most:>7}"


def coverage_line(heading: str, boxes: Any, anchors: Any) -> str:
    """Return how well anchors cover boxes."""
    from tr_det.detection.data.anchors import best_ious, coverage

    found = coverage(best_ious(boxes, anchors))
    learned, kept = 100 * found.learned, 100 * found.not_background
    return f"{heading:26}{learned:8.1f} %  {kept:8.1f} %  {found.median:10.2f}"


if __name__ == "__main__":
    main()
