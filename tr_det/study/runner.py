"""Runs on the embedded digits, each an ordinary run of the classification trainer in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tr_det.classification.config.reading import load_config, to_yaml
from tr_det.classification.engine.run import run
from tr_det.runtime.files import write_text
from tr_det.study.grid import COMPARED, groups
from tr_det.study.history import History, read_history
from tr_det.study.report import Row, add_differences, row_of

CONFIGS = Path(__file__).parents[2] / "configs/classification/digits"


def run_cell(folder: Path, settings: Mapping[str, Any], seed: int, output: Path) -> History:
    """Train if the folder does not have the end of this run yet, and return its history.

    It starts from a full-precision model of the same seed, which all cells of a seed share. Every
    update is recorded. A run that was stopped goes on from its last checkpoint.

    Args:
        folder: of the run.
        settings: dotted config key -> value, on top of ``resnet8_sgd.yaml``.
        seed: of the full-precision model, the order of the images and their augmentation.
        output: folder of the full-precision models.

    Raises:
        ValueError: the folder is of a run with other settings, or a setting is wrong.
    """
    start = output / f"full_precision/seed{seed}"
    keys = {"run.seed": seed, "run.output_dir": start}
    config = load_config(CONFIGS / "resnet8_fp.yaml", as_overrides(keys))
    pretraining = start.with_suffix(".yaml")
    write_text(pretraining, to_yaml(config))
    keys = {"run.seed": seed, "run.output_dir": folder, "model.pretraining": pretraining}
    keys |= {"run.log_period": 1, "run.eval_period": 0, **settings}
    run(load_config(CONFIGS / "resnet8_sgd.yaml", as_overrides(keys)), resume=True)
    return read_history(folder)


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return ``KEY VALUE`` pairs.

    >>> as_overrides({"solver.lr": 1e-05, "tr.update": "pi"})
    ['solver.lr', '1e-05', 'tr.update', 'pi']
    """
    return [str(part) for pair in settings.items() for part in pair]


def run_study(study: str, lengths: Sequence[int], seeds: int, output: Path) -> list[Row]:
    """Make the runs of a study that are not there yet; return a row for each setting.

    Args:
        study: one of `STUDIES`.
        lengths: numbers of updates; the study is made for each.
        seeds: runs of each setting.
        output: parent of the study's folder, which has a folder for each run.
    """
    rows: list[Row] = []
    for updates, group in [(n, group) for n in lengths for group in groups(study, n)]:
        found = []
        for label, settings in tqdm(group.items(), desc=f"{study}, {updates} updates"):
            name = re.sub(r"[^\w.-]+", "_", f"{label} {updates} updates").strip("_")
            keys = {**settings, "solver.iterations": updates}
            cells = [output / study / name / f"seed{seed}" for seed in range(seeds)]
            histories = [run_cell(cell, keys, seed, output) for seed, cell in enumerate(cells)]
            found.append(row_of(label, histories))
        if study in COMPARED:
            add_differences(found)
        rows += found
    return rows
