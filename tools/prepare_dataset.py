#!/usr/bin/env python
"""Make COCO files with a fixed split, checked, of images labelled in a common format.

tools/prepare_dataset.py voc|yolo|coco|bccd SOURCE TARGET [options]

voc   a folder of Pascal VOC's layout, or any in which each image has an .xml file of its name
yolo  a folder with data.yaml or classes.txt, images, and a .txt file for each
coco  a COCO file, or a folder of some, to be cleaned and split again
bccd  a checkout of github.com/Shenggan/BCCD_Dataset, at 320 pixels unless --size says otherwise

TARGET gets images/, train.json, test.json, fit.json and select.json (the training images once more,
for searches), and examples.png. DATASETS.REGISTER '["NAME TARGET"]' makes them known to training.
"""

from __future__ import annotations

import argparse
import json
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tr_det.runtime.cli import one_line_errors

BCCD_SIZE = 320


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and prepare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("format", choices=("voc", "yolo", "coco", "bccd"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--size", type=int, help="longer side of larger images, pixels; 0: as is")
    parser.add_argument(
        "--test-share",
        type=float,
        default=0.2,
        help="of the images, where the source has no split (default: %(default)s)",
    )
    parser.add_argument(
        "--select-share",
        type=float,
        default=0.2,
        help="of the training images, for searches (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--link", action="store_true", help="link to images, do not copy them")
    parser.add_argument("--skip-broken", action="store_true", help="leave out what is broken")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with one_line_errors():
        prepare(args)


def prepare(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from tqdm import tqdm

    from tr_det.detection.data.prepare.coco import read_coco
    from tr_det.detection.data.prepare.folder import Options, check_target, prepare_folder
    from tr_det.detection.data.prepare.source import Faults
    from tr_det.detection.data.prepare.voc import read_voc
    from tr_det.detection.data.prepare.yolo import read_yolo

    source, size = args.source, args.size
    if not source.exists():
        raise ValueError(f"SOURCE={str(source)!r}: there is no such file or folder")
    if args.format in ("voc", "bccd") and not source.is_dir():
        raise ValueError(f"SOURCE={str(source)!r}: must be a folder")
    if args.format == "bccd":
        source = source / "BCCD" if (source / "BCCD").is_dir() else source
        size = BCCD_SIZE if size is None else size
    options = Options(
        size=size or 0,
        test_share=args.test_share,
        select_share=args.select_share,
        seed=args.seed,
        link=args.link,
    )
    check_target(args.target)
    faults = Faults(args.skip_broken)
    readers = {"voc": read_voc, "bccd": read_voc, "yolo": read_yolo, "coco": read_coco}
    found = readers[args.format](source, faults)
    print(f"{len(found.photos)} images, classes {', '.join(found.classes)}")
    with tqdm(total=len(found.photos), unit="image", disable=None) as bar:
        made = prepare_folder(found, args.target, options, faults, bar.update)
    for note in made.notes:
        print(f"note: {note}")
    for part, table in made.tables.items():
        print(summary(part, table))
    name = "bccd" if args.format == "bccd" else "mine"
    register = shlex.quote(json.dumps([f"{name} {shlex.quote(str(args.target))}"]))
    print(f"look at {args.target / 'examples.png'}; then train with")
    print(
        f"  DATASETS.REGISTER {register} "
        f"""DATASETS.TRAIN "('{name}_train',)" DATASETS.TEST "('{name}_test',)\""""
    )


def summary(part: str, table: dict[str, Any]) -> str:
    """Return a part's numbers in a line."""
    names = {entry["id"]: entry["name"] for entry in table["categories"]}
    counts = Counter(note["category_id"] for note in table["annotations"])
    by_class = ", ".join(f"{name} {counts[number]}" for number, name in names.items())
    boxes = len(table["annotations"])
    return f"{part + '.json':12} {len(table['images']):6} images  {boxes:7} boxes  {by_class}"


if __name__ == "__main__":
    main()
