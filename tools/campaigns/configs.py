"""Fuzzed configs of both sides: refused in one line, or good for training and evaluation."""

from __future__ import annotations

import argparse
import math
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import train_net
import yaml
from campaigns import tiny
from campaigns.attempts import Attempt
from campaigns.children import Ended, in_child, without_times
from campaigns.mutations import NASTY, alike, changed_bytes, other_value
from detectron2.engine import HookBase

from tr_det.classification.config import reading
from tr_det.classification.engine import trainer as classifier_trainer
from tr_det.classification.engine.run import run
from tr_det.detection import QuantTrainer
from tr_det.detection.config.checks import value_of
from tr_det.detection.config.reading import load_config
from tr_det.runtime.cli import one_line_errors

PROMISE = (
    "a config is refused in one line, or trains and evaluates to an end; values that cannot be "
    "meant are refused; what is accepted leaves no weight that is not finite"
)
ATTEMPTS = 2000
MINUTES = 40.0
LIMIT = 90.0
STEPS = 5
MEMORY = 12 * 2**30

POOL = tuple(v for v in NASTY if not (isinstance(v, int | float) and 100 < abs(v) < 1e300))
"""Without large finite numbers: a huge network or image is no mistake, but takes for ever."""

_PARTS = ("MODEL.RETINANET", "MODEL.QUANT", "MODEL.FPN", "MODEL.RESNETS", "MODEL.BACKBONE")
_USED = (*_PARTS, "MODEL.ANCHOR_GENERATOR", "MODEL.PIXEL", "INPUT", "SOLVER", "TEST", "SEED")

CANNOT_BE_MEANT: dict[str, Callable[[Any], bool]] = {
    "INPUT.MIN_SIZE_TRAIN": lambda v: any(size <= 0 for size in _list(v)),
    "INPUT.MAX_SIZE_TRAIN": lambda v: v <= 0,
    "INPUT.MAX_SIZE_TEST": lambda v: v <= 0,
    "INPUT.MIN_SIZE_TEST": lambda v: v < 0,
    "MODEL.BACKBONE.FREEZE_AT": lambda v: not 0 <= v <= 5,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": lambda v: not 0 <= v < math.inf,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": lambda v: not 0 <= v < math.inf,
    "MODEL.RETINANET.NMS_THRESH_TEST": lambda v: not v >= 0,
    "MODEL.RETINANET.PRIOR_PROB": lambda v: not 0 < v < 1,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": lambda v: v <= 0,
    "MODEL.RETINANET.NUM_CLASSES": lambda v: v < 1,
    "TEST.DETECTIONS_PER_IMAGE": lambda v: v < 0,
    "TEST.EVAL_PERIOD": lambda v: v < 0,
    "SOLVER.BASE_LR": lambda v: not 0 < v < math.inf,
    "SOLVER.MOMENTUM": lambda v: not 0 <= v < 1,
    "SOLVER.WEIGHT_DECAY": lambda v: not 0 <= v < math.inf,
    "SOLVER.MAX_ITER": lambda v: v < 1,
    "SOLVER.WARMUP_ITERS": lambda v: v < 0,
    "solver.lr": lambda v: not 0 < v < math.inf,
    "solver.weight_decay": lambda v: not 0 <= v < math.inf,
    "solver.epochs": lambda v: v < 1,
    "run.log_period": lambda v: v < 1,
}
"""Key -> whether a value is one that nobody can mean; those accepted change results silently."""


class Side(NamedTuple):
    """Detection or classification.

    Attributes:
        name: of the side.
        text: its tiny config.
        values: key -> value of the whole config.
        probe: trains and evaluates what a file and pairs ask for; returns the mutated keys' values.
    """

    name: str
    text: str
    values: dict[str, Any]
    probe: Callable[[Path, list[str], list[str]], Any]


class Shared(NamedTuple):
    """Files of all attempts, and the two sides."""

    files: Path
    sides: list[Side]


class EnoughError(BaseException):
    """A training has shown that it trains."""


class _Stop(HookBase):
    def after_step(self) -> None:
        if self.trainer.iter + 1 >= STEPS:
            raise EnoughError


def prepare(folder: Path) -> Shared:
    """Write the tiny configs, and list their keys."""
    tiny.prepare(folder)
    cfg = load_config(folder / tiny.DETECTOR)
    tree = reading.to_tree(reading.load_config(folder / tiny.CLASSIFIER))
    return Shared(
        folder,
        [
            Side(
                "detection",
                (folder / tiny.DETECTOR).read_text(),
                dict(_leaves(yaml.safe_load(cfg.dump()))),
                _probe_detector,
            ),
            Side(
                "classification",
                (folder / tiny.CLASSIFIER).read_text(),
                {f"{part}.{k}": v for part, keys in tree.items() for k, v in keys.items()},
                _probe_classifier,
            ),
        ],
    )


def attempt(shared: Shared, rng: random.Random, number: int, folder: Path) -> Attempt:
    """Try one config, in a file or on a command line."""
    side = shared.sides[number % 3 == 2]
    tiny.with_images(shared.files, folder)
    file, pairs, keys = folder / "fuzzed.yaml", [], []
    if rng.random() < 0.15:
        what, data = changed_bytes(side.text.encode(), rng)
        file.write_bytes(data)
        what = f"{side.name}: the file {what}"
    else:
        keys = [_key(side, rng) for _ in range(rng.choice((1, 1, 2)))]
        values = {key: _value(key, side.values[key], rng) for key in keys}
        what = f"{side.name}: {', '.join(f'{k}={v!r}' for k, v in values.items())}"
        tree = yaml.safe_load(side.text)
        if rng.random() < 0.5:
            pairs = [word for key, value in values.items() for word in (key, str(value))]
        else:
            for key, value in values.items():
                _put(tree, key, value)
        file.write_text(yaml.safe_dump(tree))
    ended = in_child(lambda: _limited(side.probe, file, pairs, keys), folder, LIMIT)
    return judged(what, ended)


def judged(what: str, ended: Ended) -> Attempt:
    """Return the attempt with what its end says."""
    stage = "training" if "@trains" in ended.output else "building"
    if "DefaultCPUAllocator: can't allocate" in ended.output or "MemoryError" in ended.output:
        return Attempt(what, "out of memory")
    if ended.crash:
        return Attempt(what, "crashed", f"{without_times(ended.crash)} in {stage}")
    if ended.refused:
        late = "@trains" in ended.output
        return Attempt(what, "refused after training began" if late else "refused in one line")
    if ended.status != 0 or ended.value is None:
        return Attempt(what, "crashed", f"status {ended.status}: {without_times(ended.last_line)}")
    for key, value in ended.value["values"].items():
        if key in CANNOT_BE_MEANT and CANNOT_BE_MEANT[key](value):
            return Attempt(what, "accepted, though not meant", f"accepted {key}={value}")
    if not ended.value["finite"]:
        return Attempt(what, "accepted, not finite", "accepted, and left weights not finite")
    return Attempt(what, "trained and evaluated")


def _limited(probe: Callable[..., Any], *args: Any) -> Any:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    return probe(*args)


def _probe_detector(file: Path, pairs: list[str], keys: list[str]) -> Any:
    args = argparse.Namespace(config_file=str(file), opts=pairs, eval_only=False, resume=False)
    with one_line_errors():
        cfg = train_net.load_config(args)
        trainer = QuantTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.register_hooks([_Stop()])
        print("@trains", flush=True)
        with suppress(EnoughError):
            trainer.train()
        QuantTrainer.test(cfg, trainer.model)
        values = {key: value_of(cfg, key) for key in keys}
        return {"finite": _is_finite(trainer.model), "values": values}


def _probe_classifier(file: Path, pairs: list[str], keys: list[str]) -> Any:
    with one_line_errors():
        config = reading.load_config(file, pairs)
        with _steps() as models:
            run(config)
        tree = reading.to_tree(config)
        values = {key: tree[key.split(".")[0]][key.split(".")[1]] for key in keys}
        return {"finite": all(map(_is_finite, models)), "values": values}


@contextmanager
def _steps() -> Iterator[list[torch.nn.Module]]:
    """End trainings after a few updates, with their evaluation; yield their models."""
    inner, models = classifier_trainer.ClassifierTrainer.__init__, []

    def shortened(self: Any, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        self.total = min(self.total, STEPS)
        models.append(self.model)
        print("@trains", flush=True)

    classifier_trainer.ClassifierTrainer.__init__ = shortened  # type: ignore[method-assign]
    yield models


def _is_finite(model: torch.nn.Module) -> bool:
    return all(
        bool(t.isfinite().all()) for t in model.state_dict().values() if t.is_floating_point()
    )


def _key(side: Side, rng: random.Random) -> str:
    """Draw a key: often a judged one, of a detector mostly one that a RetinaNet uses."""
    judged_keys = [key for key in side.values if key in CANNOT_BE_MEANT]
    if rng.random() < 0.2:
        return rng.choice(judged_keys)
    used = [key for key in side.values if key.startswith(_USED)] or list(side.values)
    return rng.choice(used if rng.random() < 0.7 else list(side.values))


def _value(key: str, value: Any, rng: random.Random) -> Any:
    changed = alike(value, rng) if rng.random() < 0.7 else other_value(value, rng, POOL)
    # A thousand loader processes are no mistake, but harm the machine.
    if key.lower().endswith("workers") and isinstance(changed, int | float) and changed > 2:
        return 2
    return changed


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for part in parents:
        node = tree.get(part)
        tree[part] = tree = dict(node) if isinstance(node, dict) else {}
    tree[name] = value


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
