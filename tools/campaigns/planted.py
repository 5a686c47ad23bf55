"""Code planted in what a user downloads or shares: YAML files, pickles, the kernels' cache."""

from __future__ import annotations

import random
from pathlib import Path

from campaigns import planted_kernels, planted_pickles, planted_yaml, tiny
from campaigns.attempts import Attempt
from campaigns.children import command, in_child, without_times
from campaigns.plants import Place

PROMISE = "nothing of what is planted runs, in any tool; no traceback"
MINUTES = 15.0
LIMIT = 120.0
RAN = "RAN"
"""The file that planted code makes."""

CASES = (*planted_yaml.cases(), *planted_pickles.cases(), *planted_kernels.cases())
ATTEMPTS = len(CASES)


def prepare(folder: Path) -> Path:
    """Make a finished run of each side."""
    tiny.prepare(folder)
    for kind in ("detector", "classifier"):
        start = getattr(tiny, kind)(folder)
        tiny.require(in_child(start, tiny.with_images(folder, folder / kind), 300))
    run = folder / "detector/out"
    words = [run, "--format", "torch", "--output", "model.pt2"]
    tiny.require(in_child(command("export_model.py", *words), folder / "detector", 300))
    return folder


def attempt(shared: Path, rng: random.Random, number: int, folder: Path) -> Attempt:
    """Plant one case, and run the tool."""
    case = CASES[number % len(CASES)]
    place = Place(tiny.with_images(shared, folder / "work"), shared, folder / RAN)
    ended = in_child(case.plant(place), place.folder, LIMIT)
    if place.ran.exists():
        return Attempt(case.what, "ran", f"planted code ran: {case.what}")
    if ended.crash:
        return Attempt(case.what, "crashed", f"{case.what}: {without_times(ended.crash)}")
    outcome = "refused in one line" if ended.refused else "passed over"
    return Attempt(case.what, outcome, notes={"line": ended.last_line})
