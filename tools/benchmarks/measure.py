"""Measurements of time and memory: contestants in turns, medians, ratios, and the conditions."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tr_det.core.ops.build import library

Call = Callable[[], Any]
PACKAGES = ("torch", "triton", "detectron2", "brevitas", "torchao", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        rounds: samples of each contestant, taken in turns.
        warm_up: rounds before the first sample.
        sample_seconds: a sample repeats its call until it takes about this long.
        tiny: use the smallest sizes, for a quick try.
    """

    device: str
    rounds: int
    warm_up: int = 2
    sample_seconds: float = 0.01
    tiny: bool = False


def alternate(calls: dict[str, Call], settings: Settings) -> dict[str, list[float]]:
    """Return contestant -> seconds per call, one for each round.

    Every round runs each contestant once, one after the other, so that other load on the machine
    affects all of them alike.
    """
    repeats = {}
    for name, call in calls.items():
        _seconds(call, 1, settings.device)
        once = _seconds(call, 1, settings.device)
        repeats[name] = max(1, min(1000, math.ceil(settings.sample_seconds / once)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(settings.warm_up + settings.rounds):
        for name, call in calls.items():
            seconds = _seconds(call, repeats[name], settings.device)
            if index >= settings.warm_up:
                samples[name].append(seconds)
    return samples


def timings(
    samples: dict[str, list[float]], base: str, over: str, unit: str = "ms"
) -> dict[str, dict[str, Any]]:
    """Return contestant -> cells of its row.

    Args:
        samples: contestant -> seconds.
        base: the contestant that others are compared with.
        over: title of the column with the median over rounds of the time relative to the base's.
        unit: of the column with medians, ``"ms"`` or ``"us"``.
    """
    factor = {"ms": 1e3, "us": 1e6}[unit]
    return {
        name: {
            f"median, {unit}": statistics.median(times) * factor,
            over: statistics.median(a / b for a, b in zip(times, samples[base], strict=True)),
            "_seconds": times,
        }
        for name, times in samples.items()
    }


def _seconds(call: Call, repeats: int, device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / repeats


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def kept_megabytes(forward: Call, device: str) -> float:
    """Return the memory that a forward pass leaves allocated for its backward pass, in MB.

    It is measured at the allocator; saved-tensor hooks do not see the tensors of inner hooks.
    """
    if device == "cuda":
        _synchronize(device)
        before = torch.cuda.memory_allocated()
        result = forward()
        _synchronize(device)
        kept = torch.cuda.memory_allocated() - before
    else:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            result = forward()
        kept = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    del result
    return kept / 1e6


def peak_megabytes(step: Call, device: str) -> float | None:
    """Return the allocator's peak over a step, parameters included, in MB; None on CPUs."""
    if device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    step()
    _synchronize(device)
    return torch.cuda.max_memory_allocated() / 1e6


def machine(settings: Settings) -> dict[str, Any]:
    """Return hardware, versions and settings for a report."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "C kernels": "yes" if library() else "no",
        "python": platform.python_version(),
        "versions": versions,
        "rounds": settings.rounds,
        "warm-up rounds": settings.warm_up,
    }


def _cpu() -> str:
    """Return the processor's name, where the system has one."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text() if info.exists() else "", re.M)
    return names[0] if names else platform.processor() or platform.machine()
