"""A run's folder: which checkpoint is the last whole one, and what an earlier run has left."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from tr_det.runtime.damage import is_whole
from tr_det.runtime.files import read_json, write_text
from tr_det.runtime.results import read_results

FINAL = "model_final"
"""Checkpoint of a run's end, as Detectron2 names it."""

AVERAGED = "model_averaged"
"""Checkpoint of the evaluated weights, where a method (an average) changes them for evaluation."""

CONFIG = "config.yaml"

DEMO = "demo.json"
"""The demo's results, in the folder of its run."""

LAST = "last_checkpoint"  # the name that fvcore reads
NONE = "none"  # noted there while a new run takes the place of an earlier one
EARLIER = "earlier_"  # and a number: the folder of what an earlier run has left
_OWN_NAME = re.compile(r"model_\w+\.pth")


def trained_folder(folder: Path) -> Path:
    """Return the folder of a run: of the demo's, that of the run whose results it has."""
    results = {} if (folder / CONFIG).is_file() else read_results(folder)
    if "before_qat" not in results:
        return folder
    runs = sorted(folder.glob(f"runs/*/{DEMO}"), key=lambda path: path.stat().st_mtime_ns)
    own = (path.parent for path in reversed(runs) if read_json(path) == results)
    return next(own, folder)


def last_checkpoint(folder: str | Path) -> str:
    """Return the path of the newest whole checkpoint in a run's folder, "" if there is none.

    That is the one which the run has noted. If the note is missing or names what is damaged or not
    in the folder, it is the newest one that is whole, with a warning.

    Raises:
        ValueError: there are checkpoints, but none is whole.
    """
    folder = Path(folder)
    note, final = folder / LAST, folder / f"{FINAL}.pth"
    name = note.read_text(errors="replace").strip() if note.is_file() else ""
    if name == NONE:
        return ""
    is_own = bool(_OWN_NAME.fullmatch(name))
    if is_own and is_whole(folder / name):
        return str(folder / name)
    written = [*numbered_checkpoints(folder), *([final] if final.is_file() else [])]
    written.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    if not (name or written):
        return ""
    found = next((path for path in written if is_whole(path)), None)
    problem = "is missing" if not name else "names no checkpoint of its folder"
    if is_own:  # other text may be anything that the note links to
        problem = f"names {name}, which is missing or damaged"
    if found is None:
        damaged = ", ".join(str(path) for path in written) or "there is no other"
        raise ValueError(f"{note}: {problem}, and no checkpoint is whole ({damaged})")
    logging.getLogger(__name__).warning("%s %s: going on from %s", note, problem, found)
    return str(found)


def evaluated_checkpoint(folder: str | Path) -> str:
    """Return the path of what a run's last evaluation saw, "" if there is no checkpoint."""
    averaged = Path(folder) / f"{AVERAGED}.pth"
    return str(averaged) if averaged.is_file() else last_checkpoint(folder)


def numbered_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that a run wrote before its end, oldest first."""
    numbers = {
        path: int(found[1])
        for path in folder.glob("model_*.pth")
        if (found := re.fullmatch(r"model_(\d+)", path.stem, re.ASCII))
    }
    return sorted(numbers, key=numbers.__getitem__)


def set_aside(
    folder: str | Path, *others: str, last: str = "model_*.pth", otherwise: str = ""
) -> None:
    """Move the checkpoints of an earlier run, and other files, to a new folder in theirs.

    So a new run is not resumed from them, and nothing is lost. Folders of still earlier runs stay.

    Args:
        folder: of the run.
        *others: patterns of the other files' names.
        last: pattern of what is moved last. Where there is none, nothing is moved.
        otherwise: pattern that then takes its place.
    """
    folder = Path(folder)
    old, note = list(folder.glob(last)), folder / LAST
    if otherwise and not old:
        old = list(folder.glob(otherwise))
    if not old:
        return
    number = 1
    while (earlier := folder / f"{EARLIER}{number}").exists():
        number += 1
    logging.getLogger(__name__).warning(
        "A new run begins in %s: what the earlier one has left is moved to %s", folder, earlier
    )
    found = [path for pattern in others for path in folder.glob(pattern)]
    kept = {note, *old, *folder.glob(f"{EARLIER}*")}
    earlier.mkdir()
    if note.is_file():
        shutil.copy(note, earlier)
    write_text(note, NONE)  # should this process be killed before all are moved
    for path in [*(path for path in found if path not in kept), *old]:
        path.rename(earlier / path.name)
    note.unlink()
