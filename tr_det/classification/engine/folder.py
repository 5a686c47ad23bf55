"""What a run finds in its output folder, and whether that is its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from tr_det.classification.config.file import from_tree, to_tree, to_yaml
from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.engine.results import RESULTS, Row, read_results
from tr_det.runtime.checkpoints import AVERAGED
from tr_det.runtime.files import write_text

FINAL = "model_final"
LAST = "last_checkpoint"  # fvcore's
CONFIG = "config.yaml"
FREE = (
    "data.root",
    "data.download",
    "data.workers",
    "run.output_dir",
    "run.device",
    "run.log_period",
    "run.eval_period",
    "run.checkpoint_period",
    "run.keep_checkpoints",
)
"""Keys that change no number."""
PATHS = ("model.pretraining", "solver.teacher_weights")
"""Files that may have moved; whether there is one must be the same."""
_log = logging.getLogger(__name__)


def finished(config: ClassifierConfig) -> list[Row]:
    """Return the rows of the run if its folder has its end, else none.

    Raises:
        ValueError: it is the end of a run with another config.
    """
    folder = Path(config.run.output_dir)
    end = folder / f"{FINAL}.pth"
    if not (end.is_file() and (folder / RESULTS).is_file()):
        return []
    check_same_run(end, config)
    return read_results(folder)


def last_checkpoint(folder: str | Path) -> str:
    """Return the path of the newest checkpoint in a run's folder, "" if there is none."""
    note = Path(folder) / LAST
    return str(note.with_name(note.read_text().strip())) if note.is_file() else ""


def evaluated_checkpoint(folder: str | Path) -> str:
    """Return the path of what a run's last evaluation saw, "" if there is no checkpoint."""
    averaged = Path(folder) / f"{AVERAGED}.pth"
    return str(averaged) if averaged.is_file() else last_checkpoint(folder)


def check_is_free(config: ClassifierConfig) -> None:
    """Raise ValueError if starting anew would overwrite the result of another config."""
    folder = Path(config.run.output_dir)
    if any(_results(folder)):
        path = folder / CONFIG
        _check_same(path.read_text() if path.is_file() else "", config, folder)


def start_anew(config: ClassifierConfig) -> None:
    """Remove what an earlier start of this config has left, and write the config."""
    folder = Path(config.run.output_dir)
    old = list(_results(folder))
    if old:
        _log.info("Starting anew: what %s had is removed (--resume would go on)", folder)
    for path in old:
        path.unlink()
    write_text(folder / CONFIG, to_yaml(config))


def check_same_run(path: str | Path, config: ClassifierConfig) -> None:
    """Raise ValueError if the checkpoint was written by a run of another config, naming a key."""
    try:
        text = torch.load(path, map_location="cpu", weights_only=True).get("config")
    except (RuntimeError, EOFError, ValueError, AttributeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f"{path}: not a checkpoint of tools/train_classifier.py")
    _check_same(text, config, path)


def _results(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.glob("model_*.pth*") if path.is_file())
    names = (LAST, RESULTS)
    yield from (folder / name for name in names if (folder / name).is_file())


def _check_same(text: str, config: ClassifierConfig, where: str | Path) -> None:
    """Compare with a written config, which may lack the keys that came later."""
    try:
        theirs = dict(_leaves(to_tree(from_tree(ClassifierConfig, yaml.safe_load(text)))))
    except (ValueError, yaml.YAMLError):
        raise ValueError(
            f"{where}: not of a run of tools/train_classifier.py; must be another run.output_dir"
        ) from None
    for key, value in _leaves(to_tree(config)):
        same = bool(theirs[key]) == bool(value) if key in PATHS else theirs[key] == value
        if key not in FREE and not same:
            raise ValueError(
                f"{key}={value!r}: {where} is of a run with {theirs[key]!r}; must be the same, or "
                "take another run.output_dir or move that one away"
            )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        # Options are the network's or a quantizer's own: compared as a whole.
        if isinstance(value, dict) and not key.endswith("options"):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
