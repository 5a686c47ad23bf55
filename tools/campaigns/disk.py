"""Files that cannot be written to their end: old ones stay whole, and the run can go on.

A limit on the size of files stands for the full disk: what is longer fails with an error of the
system, as there.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from campaigns import kills, tiny
from campaigns.attempts import Attempt
from campaigns.children import Ended, command, in_child, without_times
from campaigns.compare import checkpoints_of, differences

PROMISE = (
    "one line and status 2, files that were there are whole and as they were, and the same command "
    "with room enough gives what it gives undisturbed"
)
ATTEMPTS = 60
MINUTES = 15.0
LIMIT = 120.0


RUNS = {kind: start for kind, (start, _) in kills.RUNS.items()} | {"detector": tiny.detector}
"""Starts of runs; without the workers of a loader, whose shared memory the limit would hold too."""


class Written(NamedTuple):
    """A command that writes files.

    Attributes:
        start: returns what calls it; run in the attempt's folder.
        result: what it writes.
    """

    start: Callable[[Path], Callable[[], Any]]
    result: str


def _export(kind: str, result: str) -> Written:
    def start(shared: Path) -> Callable[[], Any]:
        words = [shared / "detector1/out", "--format", kind, "--output", result]
        return command("export_model.py", *words)

    return Written(start, result)


def _predict(shared: Path) -> Callable[[], Any]:
    images = shared / "datasets/digit_scenes/val"
    return command("predict.py", shared / "detector1/out", images, "--output", "found")


def _pack(shared: Path) -> Callable[[], Any]:
    return command("pack_checkpoint.py", shared / "detector1/out/model_final.pth", "packed.pth")


TOOLS: dict[str, Written] = {
    "export qcdq": _export("qcdq", "model.onnx"),
    "export packed": _export("packed", "model.safetensors"),
    "predict": Written(_predict, "found/predictions.json"),
    "pack_checkpoint": Written(_pack, "packed.pth"),
}


class Shared(NamedTuple):
    """The uninterrupted runs, and what the tools write with room enough."""

    runs: kills.Shared
    results: dict[str, Path]


def prepare(folder: Path) -> Shared:
    """Make runs and files with room enough."""
    runs = kills.prepare(folder, {kind: (start, ()) for kind, start in RUNS.items()})
    results = {}
    for name, tool in TOOLS.items():
        place = folder / name.replace(" ", "_")
        tiny.require(in_child(tool.start(folder), tiny.with_images(folder, place), LIMIT))
        results[name] = place
    return Shared(runs, results)


def attempt(shared: Shared, rng: random.Random, number: int, folder: Path) -> Attempt:
    """Limit the size of files, run, lift the limit, run again."""
    names = [*RUNS, *TOOLS]
    name = names[number % len(names)]
    if name in TOOLS:
        return _tool(shared, name, rng, folder)
    return _run(shared.runs, name, rng, folder)


def _run(shared: kills.Shared, kind: str, rng: random.Random, folder: Path) -> Attempt:
    reference = shared.references[kind]
    kills.images_for(kind, shared.files, folder)
    largest = max(path.stat().st_size for path in reference.folder.rglob("*") if path.is_file())
    size = rng.choice((rng.randrange(largest), rng.randrange(20_000), rng.randrange(2_000)))
    start, output = RUNS[kind], folder / tiny.OUT
    first = in_child(_limited(start(shared.files), size), folder, LIMIT)
    problems = _problems(first)
    problems += [f"{name}: torn" for name in checkpoints_of(output)[1]]
    resume = any(output.glob("model_*.pth"))
    second = in_child(start(shared.files, resume), folder, LIMIT)
    if second.status != 0 or second.crash:
        problems.append(f"does not go on: {without_times(second.crash or second.last_line)}")
    else:
        problems += differences(output, reference.folder)
    return _attempt(kind, size, first, problems)


def _tool(shared: Shared, name: str, rng: random.Random, folder: Path) -> Attempt:
    tool, whole = TOOLS[name], shared.results[name] / TOOLS[name].result
    tiny.with_images(shared.runs.files, folder)
    old = folder / tool.result
    old.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(whole, old)
    before = old.read_bytes()
    size = rng.randrange(len(before))
    first = in_child(_limited(tool.start(shared.runs.files), size), folder, LIMIT)
    problems = _problems(first)
    if first.status != 0 and (not old.exists() or old.read_bytes() != before):
        problems.append(f"{tool.result}: not as it was")
    second = in_child(tool.start(shared.runs.files), folder, LIMIT)
    if second.status != 0 or second.crash:
        problems.append(f"fails with room: {without_times(second.crash or second.last_line)}")
    return _attempt(name, size, first, problems)


def _problems(first: Ended) -> list[str]:
    """Return what is wrong with how a command ended without room.

    What Python's logging says about its own file does not count.
    """
    is_said = any(line.startswith("error: ") for line in first.output.splitlines())
    if first.status == 0 or (first.status == 2 and is_said):
        return []
    return [without_times(first.crash) or f"status {first.status}, not 2 and one line"]


def _attempt(name: str, size: int, first: Ended, problems: list[str]) -> Attempt:
    outcome = "had room enough" if first.status == 0 else "stopped, and done again"
    return Attempt(
        what=f"{name}, files of at most {size} bytes",
        outcome="damaged" if problems else outcome,
        broken=f"{name}: {problems[0]}" if problems else "",
        notes={"problems": problems, "line": first.last_line},
    )


def _limited(function: Callable[[], Any], size: int) -> Callable[[], Any]:
    def run() -> Any:
        _print_through_a_pipe()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return function()

    return run


def _print_through_a_pipe() -> None:
    """Let a process without limit write the log: what is printed goes to no disk."""
    there, here = os.pipe()
    if os.fork() == 0:
        os.close(here)
        while data := os.read(there, 65536):
            os.write(1, data)
        os._exit(0)
    os.close(there)
    os.dup2(here, 1)
    os.dup2(here, 2)
    os.close(here)
