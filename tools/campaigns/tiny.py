"""Runs of seconds: a detector, a classifier and the demo, started through their tools.

A run's working directory is its own folder, so that what it writes holds no other paths.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import demo
import torch
import yaml
from campaigns.children import Ended, command, in_child
from detectron2.engine import defaults

from tr_det.detection import QuantCheckpointer, QuantTrainer
from tr_det.detection.config.reading import load_config
from tr_det.detection.data import datasets
from tr_det.detection.demo import run as demo_run
from tr_det.digits.dataset import build_digit_scenes

ROOT = Path(__file__).resolve().parents[2]
OUT = "out"
"""A run's output, in its working directory."""
DETECTOR, DEMO, CLASSIFIER = "detector.yaml", "demo.yaml", "classifier.yaml"
FULL_PRECISION = "full_precision.pth"
_LATE = (
    *("sklearn.datasets", "torch.utils.tensorboard", "tensorboard.plugins.hparams.summary_v2"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg"),
)
"""What runs import late, and forked ones need not import again."""
SCENES: dict[str, Any] = {"num_train": 12, "num_val": 4, "image_size": 64}

_NETWORK: dict[str, Any] = {
    "MODEL": {
        "RESNETS": {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8},
        "FPN": {"OUT_CHANNELS": 16},
        # An untrained detector scores around 0.01: it must have detections.
        "RETINANET": {"SCORE_THRESH_TEST": 0.0, "TOPK_CANDIDATES_TEST": 100},
        "QUANT": {"ENABLED": True, "CALIBRATION_BATCHES": 2},
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": [48, 56, 64],
        "MAX_SIZE_TRAIN": 64,
        "MIN_SIZE_TEST": 64,
        "MAX_SIZE_TEST": 64,
    },
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {
        "OPTIMIZER": "SGDT",
        "IMS_PER_BATCH": 2,
        "WARMUP_ITERS": 0,
        "TR": {"LOG_PERIOD": 1, "FACTOR": 0.01},
    },
    "SEED": 3,
}
_DETECTOR_RUN: dict[str, Any] = {
    "SOLVER": {
        "MAX_ITER": 8,
        "CHECKPOINT_PERIOD": 2,
        "METHODS": ["weight_average decay=0.9"],
    },
    "TEST": {"EVAL_PERIOD": 4},
    "OUTPUT_DIR": OUT,
}
_CLASSIFIER_RUN: dict[str, Any] = {
    "model": {"name": "resnet_cifar", "options": {"depth": 8, "width": 4}},
    "quant": {"bits": "W2A2"},
    "solver": {
        "optimizer": "SGDT",
        "batch_size": 32,
        "iterations": 12,
        "lr": 0.05,
        "methods": ["weight_average decay=0.9"],
    },
    "tr": {"factor": 0.01, "update": "pi", "momentum": -1},
    "run": {
        "log_period": 1,
        "checkpoint_period": 3,
        "eval_period": 6,
        "device": "cpu",
        "output_dir": OUT,
    },
}


def prepare(folder: Path) -> Path:
    """Write configs and images into a folder; return it.

    From now on the names of the embedded dataset stand for the tiny scenes.
    """
    torch.set_num_threads(1)
    for name in _LATE:
        importlib.import_module(name)
    defaults.collect_env_info = lambda: ""  # takes longer than the rest of a start
    datasets.SIZES[datasets.FULL] = SCENES
    demo_run.build_digit_scenes = partial(build_digit_scenes, **SCENES)
    folder.mkdir(parents=True)
    base = str(ROOT / "configs/digits/Base-RetinaNet-R18-half.yaml")
    configs = {
        DETECTOR: {"_BASE_": base, **_merged(_NETWORK, _DETECTOR_RUN)},
        DEMO: {"_BASE_": base, **_NETWORK},
        CLASSIFIER: _CLASSIFIER_RUN,
    }
    for name, tree in configs.items():
        (folder / name).write_text(yaml.safe_dump(tree))
    build_digit_scenes(folder / "datasets", **SCENES)
    return folder


def save_full_precision(folder: Path) -> None:
    """Write the checkpoint that the demo starts from."""

    def save() -> None:
        cfg = load_config(folder / DEMO, ["MODEL.QUANT.ENABLED", False])
        torch.manual_seed(0)
        QuantCheckpointer(QuantTrainer.build_model(cfg), str(folder)).save("full_precision")

    require(in_child(save, folder / "build", 300))


def detector(shared: Path, resume: bool = False, *arguments: object) -> Callable[[], Any]:
    """Return the start of a detector's run by tools/train_net.py."""
    words = ["--config-file", shared / DETECTOR, *["--resume"] * resume, *arguments]
    return command("train_net.py", *words)


def classifier(shared: Path, resume: bool = False, *arguments: object) -> Callable[[], Any]:
    """Return the start of a classifier's run by tools/train_classifier.py."""
    words = ["--config-file", shared / CLASSIFIER, *["--resume"] * resume, *arguments]
    return command("train_classifier.py", *words)


def the_demo(shared: Path, resume: bool = False) -> Callable[[], Any]:
    """Return the start of tools/demo.py, which resumes by itself."""

    def start() -> None:
        demo.CONFIG, demo.WEIGHTS = shared / DEMO, shared / FULL_PRECISION
        sys.argv = ["demo.py", "--iters", "20", "--output", OUT]
        demo.main()

    return start


def with_images(shared: Path, folder: Path) -> Path:
    """Let a run's folder have the images; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    os.symlink(shared / "datasets", folder / "datasets")
    return folder


def require(ended: Ended) -> Any:
    """Return a child's value.

    Raises:
        RuntimeError: it failed.
    """
    if ended.status != 0 or ended.crash:
        raise RuntimeError(f"a run that nothing disturbs failed:\n{ended.output}")
    return ended.value


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(first.get(key), dict)
        merged[key] = _merged(first[key], value) if both else value
    return merged
