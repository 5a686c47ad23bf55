"""What two runs have left: checkpoints, metrics, results and pictures, compared bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

TIMES = {"eta_seconds", "time", "data_time", "rank_data_time"}
"""Metrics that measure time."""
UNLIKE = {"seconds", "total", "versions", "machine"}
"""Keys of results.json and the like that may differ."""


def differences(folder: Path, reference: Path) -> list[str]:
    """Return how a run's folder differs from that of an undisturbed run, in a few words each."""
    found = []
    ours, theirs = (_files(path) for path in (folder, reference))
    found += [f"{name}: missing" for name in sorted(theirs - ours)]
    found += [f"{name}: not of the undisturbed run" for name in sorted(ours - theirs)]
    for name in sorted(ours & theirs):
        first, second = folder / name, reference / name
        if first.suffix == ".pth":
            problem = _first_difference(load(first), load(second))
        elif first.name == "metrics.json":
            problem = metrics_problem(first, second)
        elif first.suffix == ".json":
            pair = (_without(json.loads(path.read_text()), UNLIKE) for path in (first, second))
            problem = _first_difference(*pair)
        else:
            problem = "" if first.read_bytes() == second.read_bytes() else "other bytes"
        if problem:
            found.append(f"{name}: {problem}")
    return found


def metrics_problem(path: Path, reference: Path) -> str:
    """Return what is wrong with a metrics.json: lines, their order, iterations, values."""
    try:
        ours, theirs = (
            [json.loads(line) for line in file.read_text().splitlines()]
            for file in (path, reference)
        )
    except json.JSONDecodeError:
        return "a line is no JSON"
    places = [[row["iteration"] for row in rows] for rows in (ours, theirs)]
    if places[0] != places[1]:
        double = len(places[0]) - len(set(places[0])) - len(places[1]) + len(set(places[1]))
        if double > 0:
            return "rows twice"
        return "rows lost" if len(places[0]) < len(places[1]) else "other rows"
    for own, other in zip(ours, theirs, strict=True):
        problem = _first_difference(_without(own, TIMES), _without(other, TIMES))
        if problem:
            return problem
    return ""


def checkpoints_of(folder: Path) -> tuple[int, list[str]]:
    """Return the iteration that a run in a folder has reached, and the names of torn checkpoints.

    That is the iteration of the checkpoint which is noted as the last one; where that is not whole,
    of the newest that is; 0 where there is none.
    """
    whole, torn = {}, []
    for path in sorted(folder.rglob("model_*.pth")):
        if path.name.startswith("model_averaged"):
            continue
        try:
            stored = load(path)
        except Exception:  # whatever torch makes of half a file
            torn.append(path.name)
            continue
        # Detectron2 counts from the iteration that was made last.
        whole[path.name] = stored["iteration"] + ("trainer" in stored)
    notes = [note.read_text().strip() for note in folder.rglob("last_checkpoint")]
    noted = [whole[note] for note in notes if note in whole]
    return max(noted or whole.values(), default=0), torn


def load(path: Path) -> Any:
    """Return what a checkpoint holds."""
    return torch.load(path, map_location="cpu", weights_only=True)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a nested value holds, with its place."""
    if isinstance(value, dict | list | tuple):
        yield f"{path} ({len(value)})", None
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{path}/{key}")
    else:
        yield path, value


def _first_difference(first: Any, second: Any) -> str:
    for (place, ours), (other, theirs) in zip(leaves(first), leaves(second), strict=False):
        if place != other:
            return f"{place} instead of {other}"
        if not _same(ours, theirs):
            return f"{place} differs"
    return ""


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        # As bytes: a NaN equals itself.
        return first.contiguous().numpy().tobytes() == second.contiguous().numpy().tobytes()
    return bool(first == second or (first != first and second != second))


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    return [_without(item, keys) for item in value] if isinstance(value, list) else value


def _files(folder: Path) -> set[str]:
    """Return the files that must be as in the undisturbed run."""
    kept = [
        path
        for pattern in ("*.pth", "*.json", "*.png", "last_checkpoint")
        for path in folder.rglob(pattern)
        if path.name not in ("state.json",) and not path.name.startswith(".")
    ]
    return {str(path.relative_to(folder)) for path in kept}
