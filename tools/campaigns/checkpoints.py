"""Damaged and edited checkpoints of both sides: refused in one line, or the same to the bit."""

from __future__ import annotations

import hashlib
import io
import pickle
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from campaigns import tiny
from campaigns.attempts import Attempt
from campaigns.children import Ended, in_child, without_times
from campaigns.compare import leaves
from campaigns.mutations import changed_bytes
from torch import Tensor, nn

from tr_det.classification.config import reading
from tr_det.classification.data.datasets import load_data
from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.classification.models.build import build_network
from tr_det.detection import QuantTrainer
from tr_det.detection.checkpoint.checkpointer import QuantCheckpointer
from tr_det.detection.config.reading import load_config
from tr_det.runtime.checkpoints import StrictCheckpointer
from tr_det.runtime.cli import one_line_errors

PROMISE = (
    "a damaged file is refused in one line that names it, or loads as if it were whole; an edited "
    "one that cannot be of this model is refused"
)
ATTEMPTS = 1500
MINUTES = 20.0
LIMIT = 60.0
NAN = float("nan")

State = dict[str, Any]


class Way(NamedTuple):
    """A way in which a checkpoint is read.

    Attributes:
        name: of it.
        data: the whole file.
        suffix: of the file.
        read: reads a file, and returns a digest of what came of it.
        digest: what comes of the whole file.
    """

    name: str
    data: bytes
    suffix: str
    read: Callable[[Path], str]
    digest: str


def prepare(folder: Path) -> list[Way]:
    """Make a run of each side, and what reads their checkpoints."""
    tiny.prepare(folder)
    for kind in ("detector", "classifier"):
        start = getattr(tiny, kind)(folder)
        tiny.require(in_child(start, tiny.with_images(folder, folder / kind), 300))
    ours = folder / "detector" / tiny.OUT / "model_final.pth"
    theirs = folder / "classifier" / tiny.OUT / "model_final.pth"
    cfg = load_config(folder / tiny.DETECTOR)
    detector = QuantTrainer.build_model(cfg)
    config = reading.load_config(folder / tiny.CLASSIFIER)
    data = load_data(config.data)
    classifier = build_network(config, data, published=False)

    def evaluate_detector(path: Path) -> str:
        QuantCheckpointer(detector).load(str(path))
        return _digest(detector.state_dict())

    def resume_detector(path: Path) -> str:
        output = Path(tiny.OUT)
        output.mkdir(exist_ok=True)
        shutil.copy(path, output / "model_0000007.pth")
        (output / "last_checkpoint").write_text("model_0000007.pth")
        trainer = QuantTrainer(cfg)
        trainer.resume_or_load(resume=True)
        return _digest([trainer.model.state_dict(), trainer.state_dict(), trainer.start_iter])

    def evaluate_classifier(path: Path) -> str:
        StrictCheckpointer(classifier).load(str(path), checkpointables=[])
        return _digest(classifier.state_dict())

    def resume_classifier(path: Path) -> str:
        trainer = ClassifierTrainer(config, classifier, data)
        trainer.resume(str(path))
        states = [trainer.optimizer.state_dict(), trainer.scheduler.state_dict()]
        return _digest([classifier.state_dict(), *states, trainer.iteration])

    files = {
        "detector's weights": (ours.read_bytes(), ".pth", evaluate_detector),
        "detector's run": (ours.read_bytes(), ".pth", resume_detector),
        "detector's .pkl": (_as_pickle(ours), ".pkl", evaluate_detector),
        "classifier's weights": (theirs.read_bytes(), ".pth", evaluate_classifier),
        "classifier's run": (theirs.read_bytes(), ".pth", resume_classifier),
    }
    ways = []
    for name, (content, suffix, read) in files.items():
        whole = folder / f"whole{suffix}"
        whole.write_bytes(content)
        place = tiny.with_images(folder, folder / f"digest {name}")
        digest = tiny.require(in_child(partial(read, whole), place, LIMIT))
        ways.append(Way(name, content, suffix, read, digest))
    return ways


def attempt(shared: list[Way], rng: random.Random, number: int, folder: Path) -> Attempt:
    """Read one damaged or edited checkpoint."""
    way = shared[number % len(shared)]
    file = folder / f"harmed{way.suffix}"
    edit = ""
    if rng.random() < 0.6:
        what, data = changed_bytes(way.data, rng)
        file.write_bytes(data)
    else:
        edit, saved = _edited(way, rng)
        what = edit
        _write(saved, file)

    def read() -> Any:
        with one_line_errors():
            return {"digest": way.read(file)}

    (folder / "run").mkdir()
    (folder / "run/datasets").symlink_to(file.parents[2] / "shared/datasets")
    ended = in_child(read, folder / "run", LIMIT)
    return _judged(f"{way.name}: {what}", way, edit, ended)


def _judged(what: str, way: Way, edit: str, ended: Ended) -> Attempt:
    if ended.crash:
        return Attempt(what, "crashed", f"{way.name}: {without_times(ended.crash)}")
    if ended.refused:
        named = "harmed" in ended.last_line or "model_0000007" in ended.last_line
        advice = "weights_only" in ended.last_line
        problem = "refusal gives torch's advice" if advice else "refusal does not name the file"
        problem = f"{problem}: {without_times(ended.last_line)}"
        return Attempt(what, "refused in one line", "" if named and not advice else problem)
    if ended.status != 0 or ended.value is None:
        line = without_times(ended.last_line)
        return Attempt(what, "crashed", f"{way.name}: status {ended.status}: {line}")
    if edit in HARMLESS:
        return Attempt(what, "edited to another model's, accepted")
    if edit:
        return Attempt(what, "edited, accepted", f"{way.name}: accepted with {edit}")
    if ended.value["digest"] == way.digest:
        return Attempt(what, "accepted, and the same to the bit")
    if way.suffix == ".pkl":  # has no checksum, and nobody could tell
        return Attempt(what, "accepted with other numbers, which nothing in the file tells")
    # What torch.save writes has a checksum of each tensor.
    broken = f"{way.name}: accepted with other numbers than the file's checksums are of"
    return Attempt(what, "accepted with other numbers", broken)


def _as_pickle(path: Path) -> bytes:
    """Return a checkpoint's model as the model zoo has it: arrays in a pickle."""
    state = torch.load(path, weights_only=True)["model"]
    arrays = {k: v.numpy() for k, v in state.items() if isinstance(v, Tensor)}
    return pickle.dumps({"model": arrays, "__author__": "campaign"})


def _read(way: Way) -> State:
    if way.suffix == ".pkl":
        loaded: State = pickle.loads(way.data)
        state = loaded["model"]
        loaded["model"] = {
            k: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v
            for k, v in state.items()
        }
        return loaded
    found: State = torch.load(io.BytesIO(way.data), weights_only=True)
    return found


def _write(saved: State, file: Path) -> None:
    if file.suffix == ".pkl":
        model = saved.get("model")
        if isinstance(model, dict):
            arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in model.items()}
            saved = {**saved, "model": arrays}
        file.write_bytes(pickle.dumps(saved))
    else:
        torch.save(saved, file)


def _edited(way: Way, rng: random.Random) -> tuple[str, State]:
    """Return what was changed in a checkpoint, and its content."""
    saved = _read(way)
    names = [name for name, (_, runs) in EDITS.items() if "run" in way.name or not runs]
    name = rng.choice(names)
    EDITS[name][0](saved, rng)
    return name, saved


def _some(saved: State, rng: random.Random, *parts: str) -> str:
    """Return one of the model's tensors with numbers whose name has one of the parts."""
    found = [
        key
        for key, value in saved["model"].items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
        if any(part in key for part in parts)
    ]
    return rng.choice(found)


def _with(*parts: str, value: float) -> Callable[[State, random.Random], None]:
    def edit(saved: State, rng: random.Random) -> None:
        key = _some(saved, rng, *parts)
        changed = saved["model"][key].clone()
        changed.view(-1)[rng.randrange(changed.numel())] = value
        saved["model"][key] = changed

    return edit


def _replaced(change: Callable[[Tensor], Any]) -> Callable[[State, random.Random], None]:
    def edit(saved: State, rng: random.Random) -> None:
        key = _some(saved, rng, ".weight", ".scale", ".running_var")
        saved["model"][key] = change(saved["model"][key])

    return edit


def _without(*parts: str) -> Callable[[State, random.Random], None]:
    return lambda saved, rng: saved["model"].pop(_some(saved, rng, *parts))


def _more(saved: State, rng: random.Random) -> None:
    saved["model"]["backbone.nothing.weight"] = torch.zeros(3)


def _renamed(saved: State, rng: random.Random) -> None:
    key = _some(saved, rng, "")
    saved["model"][f"{key}x"] = saved["model"].pop(key)


def _top(key: str, value: Any = None) -> Callable[[State, random.Random], None]:
    def edit(saved: State, rng: random.Random) -> None:
        for name in (key, "optimizer") if key == "trainer" else (key,):
            if value is None:
                saved.pop(name, None)
            else:
                saved[name] = value

    return edit


def _at_iteration(value: Any) -> Callable[[State, random.Random], None]:
    """Return what sets the iteration that a run goes on from; None removes it."""

    def edit(saved: State, rng: random.Random) -> None:
        _top("iteration", value)(saved.get("trainer", saved), rng)  # a classifier's is not nested

    return edit


EDITS: dict[str, tuple[Callable[[State, random.Random], None], bool]] = {
    "a scale of 0": (_with(".scale", value=0.0), False),
    "a negative scale": (_with(".scale", value=-1.0), False),
    "a weight's scale that is NaN": (_with("weight_quantizer.scale", value=NAN), False),
    "an input's scale that is NaN": (_with("input_quantizer.scale", value=NAN), False),
    "an infinite running variance": (_with("running_var", value=float("inf")), False),
    "a negative running variance": (_with("running_var", value=-1.0), False),
    "a weight that is NaN": (_with(".weight", value=NAN), False),
    "an infinite weight": (_with(".weight", value=float("inf")), False),
    "another weight": (_with(".weight", value=0.123), False),
    "a scale missing": (_without(".scale"), False),
    "a weight missing": (_without(".weight"), False),
    "a running variance missing": (_without("running_var"), False),
    "another shape": (_replaced(lambda v: v[None].repeat(2, *[1] * v.dim())), False),
    "an empty tensor": (_replaced(lambda v: v.new_zeros(0)), False),
    "integers": (_replaced(lambda v: (v * 100).round().int()), False),
    "complex numbers": (_replaced(lambda v: v.to(torch.complex64)), False),
    "booleans": (_replaced(lambda v: v > 0), False),
    "float16": (_replaced(lambda v: v.half()), False),
    "float64": (_replaced(lambda v: v.double()), False),
    "a string for a tensor": (_replaced(lambda v: "x"), False),
    "one more tensor": (_more, False),
    "a tensor renamed": (_renamed, False),
    "a list for the model": (_top("model", [1, 2]), False),
    "no trainer state": (_top("trainer"), True),
    "no iteration": (_at_iteration(None), True),
    "a string for the iteration": (_at_iteration("x"), True),
    "a negative iteration": (_at_iteration(-5), True),
}
"""What is edited -> how, and whether only one that goes on with a run can tell."""

HARMLESS = {
    "another weight": "nothing in a whole file tells",
    "float16": "as it was packed",
    "float64": "the same numbers",
    "a negative scale": "training may leave one; it counts as the smallest",
    "an input's scale that is NaN": "not set, as where a layer has had no input; training sets it",
}
"""What may be accepted, and why."""


def _digest(state: Any) -> str:
    """Return a hash of all that a nested state holds."""
    digest = hashlib.sha256()
    for place, value in leaves(state):
        digest.update(place.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif not isinstance(value, nn.Module):
            digest.update(repr(value).encode())
    return digest.hexdigest()
