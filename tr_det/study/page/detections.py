"""Which images a page shows, and which boxes: the annotations', the run's, the baseline's."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tr_det.study.page.pictures import Found, Picture, picture_of
from tr_det.study.page.recorded import RecordedRun

MOST_IMAGES = 5
LEAST_SCORE = 0.4
DETECTIONS = "coco_instances_results.json"
FULL_PRECISION = "full precision, the start"

ByImage = Mapping[Any, Sequence[Found]]


class Scenes(NamedTuple):
    """An annotated dataset.

    Attributes:
        root: folder of the images.
        files: id of an image -> its file's name.
        classes: id of a category -> its name.
        truth: id of an image -> its annotations.
    """

    root: Path
    files: Mapping[Any, str]
    classes: Mapping[Any, str]
    truth: ByImage


def side_by_side(run: RecordedRun, other: RecordedRun | None) -> tuple[list[Picture], str]:
    """Return pictures of some images, and a text about them or why there are none.

    Args:
        run: whose detections are shown.
        other: what they are compared with.
    """
    tests = run.value("DATASETS.TEST", "")
    if not tests:
        return [], "The run names no test set."
    name = str(tests[0])
    path = _detections_of(run, name)
    if path is None:
        return [], f"The run's folder has no {DETECTIONS}: it has not been evaluated there."
    try:
        scenes = _scenes(run, name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], f"The images of {name} are not here ({' '.join(str(error).split())})."
    columns = {f"{run.bits_name} {run.optimizer}": _read(path, scenes)}
    second = _detections_of(other, name) if other else None
    if other is not None and second is not None:
        columns[_title(other, columns)] = _read(second, scenes)
    elif run.demo:
        columns[FULL_PRECISION] = _read(run.folder / "fp" / DETECTIONS, scenes)
    pictures = [
        picture_of(
            scenes.root / scenes.files[image],
            scenes.files[image],
            scenes.truth[image],
            {title: found.get(image, ()) for title, found in columns.items()},
        )
        for image in chosen(scenes.truth)
    ]
    shown = [picture for picture in pictures if picture is not None]
    if not shown:
        return [], f"No image of {name} can be read in {scenes.root}."
    return shown, (
        f"Images of {name}, from crowded to sparse; detections that score {LEAST_SCORE} or more. "
        "A dashed box has no partner: an object that this run misses, or a detection that meets no "
        "object of its class (IoU 0.5)."
    )


def chosen(truth: ByImage) -> list[Any]:
    """Return the ids of some images, spread over how many objects they have."""
    images = sorted(truth, key=lambda image: -len(truth[image]))
    count = min(MOST_IMAGES, len(images))
    return [images[int((place + 0.5) * len(images) / count)] for place in range(count)]


def _title(other: RecordedRun, columns: Mapping[str, ByImage]) -> str:
    title = f"{other.bits_name} {other.optimizer}"
    return f"{title}, {other.folder.name}" if title in columns else title


def _detections_of(run: RecordedRun, dataset: str) -> Path | None:
    """Return the file of a run's last evaluation of a dataset."""
    places = ("after_qat",) if run.demo else (f"inference/{dataset}", "inference")
    paths = [run.folder / place / DETECTIONS for place in places]
    return next((path for path in paths if path.is_file()), None)


def _scenes(run: RecordedRun, name: str) -> Scenes:
    """Return the annotations of a test set, which is known by the run's config or to Detectron2."""
    # Detectron2 is slow to import, and a classifier's page does not need it.
    from tr_det.detection.data.register import files_of

    files = files_of(name, run.value("DATASETS.REGISTER", "", []) or [])
    with open(files.json_file, encoding="utf-8") as file:
        tree = json.load(file)
    classes = {category["id"]: str(category["name"]) for category in tree["categories"]}
    truth: dict[Any, list[Found]] = defaultdict(list)
    for entry in tree["annotations"]:
        if not entry.get("iscrowd"):
            truth[entry["image_id"]].append(_found(entry, classes))
    names = {image["id"]: str(image["file_name"]) for image in tree["images"]}
    truth = {image: boxes for image, boxes in truth.items() if image in names}
    return Scenes(Path(files.image_root), names, classes, truth)


def _read(path: Path, scenes: Scenes) -> ByImage:
    """Return the detections of an evaluation with a score that is shown."""
    found = defaultdict(list)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of a run that was stopped while it wrote
        entries = []
    for entry in entries:
        if entry["score"] >= LEAST_SCORE:
            found[entry["image_id"]].append(_found(entry, scenes.classes))
    return found


def _found(entry: Mapping[str, Any], classes: Mapping[Any, str]) -> Found:
    order = {category: place for place, category in enumerate(classes)}
    category = entry["category_id"]
    x, y, width, height = map(float, entry["bbox"])
    name = classes.get(category, str(category))
    return Found((x, y, width, height), name, order.get(category, 0), entry.get("score"))
