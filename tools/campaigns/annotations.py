"""Fuzzed COCO files: refused in one line before training, or scored and trained as they say."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import train_net
from campaigns import tiny
from campaigns.attempts import Attempt
from campaigns.children import Ended, in_child, without_times
from campaigns.mutations import NASTY, changed_bytes, other_value
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

from tr_det.detection import QuantTrainer
from tr_det.runtime.cli import one_line_errors

PROMISE = (
    "a file is refused in one line before training; of an accepted test set perfect detections "
    "score AP 100; of an accepted training set every box is trained on, or said to be left out"
)
ATTEMPTS = 1500
MINUTES = 30.0
LIMIT = 60.0

FUZZED = "fuzzed"
Tree = dict[str, Any]

_BOXES: tuple[Callable[[list[float]], Any], ...] = (
    lambda box: [-box[0] - 1, *box[1:]],
    lambda box: [box[0], box[1] - 40, *box[2:]],
    lambda box: [*box[:2], -box[2], box[3]],
    lambda box: [*box[:3], 0],
    lambda box: [box[0] + 1000, *box[1:]],
    lambda box: [*box[:2], box[2] + 1000, box[3]],
    lambda box: [math.inf, *box[1:]],
    lambda box: [*box[:3], math.nan],
    lambda box: [*box[:2], box[0] + box[2], box[1] + box[3]],
    lambda box: [str(value) for value in box],
    lambda box: [True, *box[1:]],
    lambda box: box[:3],
    lambda box: [*box, 0.0],
    lambda box: [value + 0.25 for value in box],
    lambda box: None,
)
_FILE_NAMES = ("nothing.png", "", "http://localhost/000001.png", "../train", "/etc/passwd", "..")
_FIELDS = {
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
}


_SAID = ("left out of training", "in training they are cut", "Skipping a training image")
"""What the log says of boxes that are not trained on as they are."""


class Shared(NamedTuple):
    """Files of all attempts, and the two sets' annotations."""

    files: Path
    trees: dict[str, Tree]


def prepare(folder: Path) -> Shared:
    """Make the images and read their annotations."""
    tiny.prepare(folder)
    notes = folder / "datasets/digit_scenes/annotations"
    return Shared(
        folder,
        {
            split: json.loads((notes / f"instances_{split}.json").read_text())
            for split in ("train", "val")
        },
    )


def attempt(shared: Shared, rng: random.Random, number: int, folder: Path) -> Attempt:
    """Try one changed file, as the training or as the test set."""
    split = ("val", "train")[number % 2]
    tree = copy.deepcopy(shared.trees[split])
    file = folder / "fuzzed.json"
    if rng.random() < 0.1:
        what, data = changed_bytes(json.dumps(tree).encode(), rng)
        file.write_bytes(data)
    else:
        what = "; ".join(_change(tree, rng) for _ in range(rng.choice((1, 1, 1, 2))))
        file.write_text(json.dumps(tree))
    tiny.with_images(shared.files, folder)
    images = shared.files / "datasets/digit_scenes" / split
    ended = in_child(lambda: _probe(shared.files, split, file, images), folder, LIMIT)
    return _judged(f"{split}: {what}", ended)


def _judged(what: str, ended: Ended) -> Attempt:
    if ended.crash:
        return Attempt(what, "crashed", without_times(ended.crash))
    if ended.refused:
        return Attempt(what, "refused in one line")
    if ended.status != 0 or ended.value is None:
        return Attempt(what, "crashed", f"status {ended.status}: {without_times(ended.last_line)}")
    if ended.value["problem"]:
        return Attempt(what, "accepted, and changes results", ended.value["problem"])
    return Attempt(what, "accepted, and used as it says")


def _probe(shared: Path, split: str, file: Path, images: Path) -> Any:
    """Do what training does before its first iteration, then judge what it goes by."""
    register_coco_instances(FUZZED, {}, str(file), str(images))
    key = "DATASETS.TRAIN" if split == "train" else "DATASETS.TEST"
    opts = [key, f"('{FUZZED}',)"]
    args = argparse.Namespace(
        config_file=str(shared / tiny.DETECTOR), opts=opts, eval_only=False, resume=False
    )
    with one_line_errors():
        cfg = train_net.load_config(args)
        trainer = QuantTrainer(cfg)
        judge = _training_problem if split == "train" else _test_problem
        return {"problem": judge(trainer, json.loads(file.read_bytes()))}


def _training_problem(trainer: QuantTrainer, tree: Tree) -> str:
    """Return how the loader's boxes differ from the file's, "" if not or if the log says so."""
    wanted: dict[Any, list[list[float]]] = {image["id"]: [] for image in tree["images"]}
    for note in tree["annotations"]:
        if not note.get("iscrowd", 0):
            wanted.setdefault(note["image_id"], []).append(note["bbox"])
    dicts = DatasetCatalog.get(FUZZED)
    if len({entry["image_id"] for entry in dicts}) < len(dicts):
        return "trains on an image twice"
    seen = {}
    batches = iter(trainer.data_loader)
    for _ in range(3 * len(dicts)):
        for entry in next(batches):
            scale = tiny.SCENES["image_size"] / entry["image"].shape[-1]
            seen[entry["image_id"]] = entry["instances"].gt_boxes.tensor.numpy() * scale
    for image, notes in wanted.items():
        boxes = np.array(notes, dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found = seen.get(image, np.zeros((0, 4)))
        if len(found) != len(boxes):
            return "" if _is_said() else "trains on fewer boxes than the file has, without a word"
        if not np.allclose(found, boxes, atol=1.5):
            return "" if _is_said() else "trains on other boxes than the file's, without a word"
    return ""


def _is_said() -> bool:
    """Return whether the log says that something is left out."""
    log = Path("log.txt").read_text(errors="replace")
    return any(words in log for words in _SAID)


def _test_problem(trainer: QuantTrainer, tree: Tree) -> str:
    """Return what perfect detections score, if that is not 100."""
    evaluator = QuantTrainer.build_evaluator(trainer.cfg, FUZZED, "perfect")
    evaluator.reset()
    classes = MetadataCatalog.get(FUZZED).thing_dataset_id_to_contiguous_id
    for image in tree["images"]:
        notes = [
            note
            for note in tree["annotations"]
            if note["image_id"] == image["id"] and not note.get("iscrowd", 0)
        ]
        width, height = tiny.SCENES["image_size"], tiny.SCENES["image_size"]
        # A model's boxes end at the image's border.
        boxes = np.array([note["bbox"] for note in notes], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, (width, height, width, height))
        found = Instances((height, width))
        found.pred_boxes = Boxes(torch.from_numpy(boxes))
        found.scores = torch.ones(len(notes))
        found.pred_classes = torch.tensor([classes[n["category_id"]] for n in notes]).long()
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
    with contextlib.redirect_stdout(io.StringIO()):
        scores = evaluator.evaluate().get("bbox", {})
    precision = scores.get("AP", math.nan)
    if math.isnan(precision):  # which nobody overlooks
        return "" if not tree["annotations"] else "perfect detections get no AP"
    tens = 10 * int(precision / 10)
    return "" if precision > 99.99 else f"perfect detections score an AP of {tens} or more"


def _change(tree: Tree, rng: random.Random) -> str:
    """Change a tree in one place; return what was done."""
    part = rng.choices(list(_FIELDS), (6, 3, 1))[0]
    if not isinstance(tree.get(part), list) or not tree[part]:
        return "nothing"
    place = rng.randrange(len(tree[part]))
    record = tree[part][place]
    if not isinstance(record, dict):
        return "nothing"
    kind = rng.choices(("field", "box", "clash", "record", "part", "file"), (8, 6, 3, 2, 2, 2))[0]
    if kind == "box":
        note = rng.choice(tree["annotations"] or [None])  # a change before may have emptied it
        if not isinstance(note, dict) or not isinstance(note.get("bbox"), list):
            return "nothing"
        index = rng.randrange(len(_BOXES))
        try:
            note["bbox"] = _BOXES[index](note["bbox"])
        except (TypeError, IndexError):
            return "nothing"
        return f"bbox={note['bbox']}"
    if kind == "clash":
        other = rng.choice(tree[part])
        field = rng.choice([name for name in _FIELDS[part] if name.endswith("id")])
        record[field] = copy.deepcopy(other.get(field)) if isinstance(other, dict) else None
        return f"{part}[{place}].{field} of another one"
    if kind == "record":
        tree[part].insert(rng.randrange(len(tree[part])), copy.deepcopy(record))
        return f"{part}[{place}] twice"
    if kind == "part":
        tree[part] = copy.deepcopy(rng.choice(([], None, {}, [None], "x", tree[part][:1])))
        return f"{part}={str(tree[part])[:20]}"
    if kind == "file":
        image = rng.choice(tree["images"] or [None])
        if isinstance(image, dict):
            image["file_name"] = rng.choice(_FILE_NAMES)
            return f"file_name={image['file_name']}"
        return "nothing"
    field = rng.choice(_FIELDS[part])
    if rng.random() < 0.15:
        record.pop(field, None)
        return f"{part}[{place}] without {field}"
    record[field] = other_value(record.get(field), rng, NASTY)
    return f"{part}[{place}].{field}={record[field]!r}"
