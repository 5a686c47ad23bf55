"""SIGKILL, then the same run again, until it ends: it must end as if nothing had happened."""

from __future__ import annotations

import importlib
import os
import random
import re
import select
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from campaigns import tiny
from campaigns.attempts import Attempt
from campaigns.children import Child, Ended, in_child, stopped
from campaigns.compare import checkpoints_of, differences

PROMISE = (
    "every run ends with status 0; no checkpoint is torn or lost; checkpoints, metrics, results "
    "and pictures equal the uninterrupted run's bit for bit; no process outlives its parent"
)
ATTEMPTS = 100
MINUTES = 25.0
MOST_KILLS = 3
LIMIT = 120.0

_SAVING = ("torch.save", "os.fsync", "os.replace")
_DETECTOR = "tr_det.detection.engine.trainer.QuantTrainer"
_DEMO = "tr_det.detection.demo.run"
Runs = dict[str, tuple[Callable[..., Callable[[], Any]], tuple[str, ...]]]
RUNS: Runs = {
    "detector": (
        lambda files, resume=False: tiny.detector(files, resume, "DATALOADER.NUM_WORKERS", 1),
        (*_SAVING, f"{_DETECTOR}.test", "tr_det.detection.engine.results.write_results"),
    ),
    "classifier": (
        tiny.classifier,
        (
            *_SAVING,
            "tr_det.classification.engine.trainer.evaluate_model",
            "tr_det.runtime.metrics.MetricsWriter.write",
            "tr_det.classification.engine.run.write_results",
        ),
    ),
    "demo": (
        tiny.the_demo,
        (
            *_SAVING,
            f"{_DETECTOR}.test",
            f"{_DEMO}.build_digit_scenes",
            f"{_DEMO}.calibrate",
            f"{_DEMO}.draw_tr",
            f"{_DEMO}.draw_detections",
            f"{_DEMO}.write_json",
        ),
    ),
}
"""Kind of run -> its start, and the functions inside which it is killed."""

STARTS = re.compile(
    r"(?:Starting training from iteration|Going on from iteration|resuming at iteration) (\d+)"
)


class Call(NamedTuple):
    """A call in the uninterrupted run."""

    target: str
    seconds: float


class Reference(NamedTuple):
    """The uninterrupted run of a kind.

    Attributes:
        folder: its output.
        seconds: that it took.
        calls: of the functions inside which runs are killed.
    """

    folder: Path
    seconds: float
    calls: list[Call]


class Kill(NamedTuple):
    """When a run is killed.

    Attributes:
        seconds: after its start, or after the begin of the call.
        target: a function; "" for none.
        number: of the call, from 0.
        place: "inside" the call, "before" or "after" it.
    """

    seconds: float
    target: str = ""
    number: int = 0
    place: str = "inside"

    def __str__(self) -> str:
        if not self.target:
            return f"after {self.seconds:.2f} s"
        name = ".".join(self.target.split(".")[-2:])
        return f"{self.place} call {self.number} of {name}"


class Shared(NamedTuple):
    """Files of all attempts, and the uninterrupted runs."""

    files: Path
    references: dict[str, Reference]


def prepare(folder: Path, runs: Runs = RUNS) -> Shared:
    """Make the uninterrupted runs, each twice: runs that differ could not be judged."""
    tiny.prepare(folder)
    tiny.save_full_precision(folder)
    references = {}
    for kind, run in runs.items():
        both = [_uninterrupted(kind, *run, folder, folder / f"{kind}{i}") for i in (1, 2)]
        problems = differences(both[1].folder, both[0].folder)
        if problems:
            raise RuntimeError(f"two undisturbed runs of the {kind} differ: {problems}")
        references[kind] = both[1]
    return Shared(folder, references)


def attempt(shared: Shared, rng: random.Random, number: int, folder: Path) -> Attempt:
    """Kill a run one to three times, then let it end."""
    kind = list(RUNS)[number % len(RUNS)]
    reference = shared.references[kind]
    images_for(kind, shared.files, folder)
    kills: list[str] = []
    problems: list[str] = []
    wanted = rng.randint(1, MOST_KILLS)
    while True:
        kill = _draw(rng, reference) if len(kills) < wanted else None
        output = folder / tiny.OUT
        reached, _ = checkpoints_of(output)
        ended = _run(kind, shared.files, folder, bool(kills), kill)
        problems += _start_problem(reached, ended)
        problems += ["processes outlive it"] if ended.orphans else []
        is_killed = ended.status == -9 and kill is not None
        if is_killed:
            kills.append(str(kill))
            problems += [f"{name}: torn" for name in checkpoints_of(output)[1]]
        elif ended.status != 0 or ended.crash:
            problems.append(f"did not end: {ended.crash or ended.last_line}")
        # After the demo's last file the same command would be another demo.
        if not is_killed or any(output.rglob("demo.json")):
            break
    problems = problems or differences(output, reference.folder)
    return Attempt(
        what=f"{kind}: {'; '.join(kills) or 'ended before the kill'}",
        outcome=f"{kind} {'as uninterrupted' if not problems else 'damaged'}",
        broken=f"{kind}: {problems[0]}" if problems else "",
        counts={f"kills of the {kind}": len(kills)},
        notes={"problems": problems},
    )


def _uninterrupted(
    kind: str,
    start: Callable[..., Callable[[], Any]],
    targets: tuple[str, ...],
    files: Path,
    folder: Path,
) -> Reference:
    images_for(kind, files, folder)
    began = time.perf_counter()
    calls: list[tuple[str, float]] = []

    def run() -> Any:
        for target in targets:
            _wrap(target, partial(_timed, target, calls))
        start(files)()
        return calls

    found = tiny.require(in_child(run, folder, LIMIT))
    seconds = time.perf_counter() - began
    return Reference(folder / tiny.OUT, seconds, [Call(*call) for call in found])


def _timed(name: str, calls: list[tuple[str, float]], call: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    try:
        return call()
    finally:
        calls.append((name, time.perf_counter() - began))


def _draw(rng: random.Random, reference: Reference) -> Kill:
    """Draw a kill: half of them at a moment, the others in, before or after a call."""
    if rng.random() < 0.5:
        return Kill(rng.uniform(0, reference.seconds))
    target = rng.choice(sorted({call.target for call in reference.calls}))
    calls = [call for call in reference.calls if call.target == target]
    # A resumed run makes fewer calls.
    index = min(rng.randrange(len(calls)), rng.randrange(len(calls)))
    place = rng.choice(("before", "inside", "inside", "after"))
    return Kill(rng.uniform(0, calls[index].seconds), target, index, place)


def _run(kind: str, files: Path, folder: Path, resume: bool, kill: Kill | None) -> Ended:
    """Start a run and kill it; without a kill, or if it ends before, wait for its end."""
    begin = RUNS[kind][0](files, resume)
    there, here = os.pipe()

    def run() -> None:
        os.close(there)
        if kill is not None and kill.target:
            counter = iter(range(kill.number + 1))
            _wrap(kill.target, partial(_announced, kill, counter, here))
        begin()

    child = Child(run, folder, folder)
    os.close(here)
    try:
        with stopped(child):
            if kill is not None and _reached(kill, there):
                time.sleep(kill.seconds if kill.place == "inside" else 0)
                child.kill()
            return child.wait(LIMIT)
    finally:
        os.close(there)


def _reached(kill: Kill, pipe: int) -> bool:
    """Wait for the call in which a run is killed; return False if the run ends without it."""
    if not kill.target:
        return True
    ready, _, _ = select.select([pipe], [], [], LIMIT)
    return bool(ready) and os.read(pipe, 1) == b"!"


def _announced(kill: Kill, counter: Iterator[int], pipe: int, call: Callable[[], Any]) -> Any:
    """Make a call; tell the parent at the chosen one, and wait for the kill."""
    chosen = next(counter, None) == kill.number
    if chosen and kill.place == "inside":
        os.write(pipe, b"!")
    if chosen and kill.place == "before":
        _wait_for_death(pipe)
    result = call()
    if chosen and kill.place == "after":
        _wait_for_death(pipe)
    return result


def _wait_for_death(pipe: int) -> None:
    os.write(pipe, b"!")
    time.sleep(LIMIT)


def _wrap(target: str, around: Callable[[Callable[[], Any]], Any]) -> None:
    """Replace a function by one that hands its calls to ``around``."""
    owner, name = resolved(target)
    inner = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        return around(lambda: inner(*args, **kwargs))

    is_bound = hasattr(inner, "__self__")  # a class method
    setattr(owner, name, staticmethod(outer) if is_bound else outer)


def resolved(target: str) -> tuple[Any, str]:
    """Return the module or class, and the name in it, of a dotted name."""
    path, _, name = target.rpartition(".")
    try:
        return importlib.import_module(path), name
    except ModuleNotFoundError:
        module, _, owner = path.rpartition(".")
        return getattr(importlib.import_module(module), owner), name


def _start_problem(reached: int, ended: Ended) -> list[str]:
    """Return whether a run went back behind its last checkpoint."""
    found = STARTS.search(ended.output)
    if found and int(found.group(1)) < reached:
        return [f"went on from iteration {found.group(1)} instead of {reached}"]
    return []


def images_for(kind: str, files: Path, folder: Path) -> None:
    """Make the folder of a run, with the images that it needs."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind != "demo":  # which builds them
        tiny.with_images(files, folder)
