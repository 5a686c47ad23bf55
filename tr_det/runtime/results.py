"""results.json: what a run gave, in one form for detection and classification.

    config     of the run, nested
    seed       that the run used, also where the config asked for any
    versions   of tr_det, torch, Python, and Detectron2 if it is used
    machine    that ended the run: cpu; gpu, "" if the model was on none; processes, and the CPU
               threads of each
    metrics    of the last evaluation
    updates    of the whole run
    tr         summary of the transition rates (`tr_summary`)
    cost       storage_mb and storage_mb_at_32_bits (10^6 bytes), and bops of one image, where known
    seconds    that the process which ended the run has trained
    paths      folder; checkpoint, which was evaluated; start, the weights that training started
               from, "" for random ones

It is written after the last evaluation.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tr_det import __version__
from tr_det.core.methods.telemetry import LAYERS
from tr_det.runtime.files import read_json, write_json
from tr_det.runtime.processes import processes

RESULTS = "results.json"

Results = dict[str, Any]


def make_results(
    records: Iterable[Mapping[str, Any]], device: torch.device, **parts: Any
) -> Results:
    """Return the results of a run that ends in this process.

    Args:
        records: of metrics.json.
        device: of the model.
        **parts: all but ``versions``, ``machine`` and ``tr``.
    """
    versions = {
        "tr_det": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if "detectron2" in sys.modules:
        versions["detectron2"] = sys.modules["detectron2"].__version__
    machine = {
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "processes": processes(),
        "threads": torch.get_num_threads(),
    }
    return {**parts, "versions": versions, "machine": machine, "tr": tr_summary(records)}


def tr_summary(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return what the transition rates of a run were, as far as its records have them.

    Args:
        records: of metrics.json.

    Returns:
        ``first_target``, ``last_target`` and ``running_tr``, the last: means over layers;
        ``factor``, lambda;
        ``tracking_error``, mean abs(K - R) over layers and the records after the first tenth,
        as a share of the largest target; with TR scheduling alone;
        ``mean_rate``, the mean transition rate; with quantized weights alone.

    >>> tr_summary([{"tr/rate": 0.2, "tr/target": 0.4}, {"loss": 1.0}, {"tr/rate": 0.1}])
    {'first_target': 0.4, 'last_target': 0.4, 'mean_rate': 0.15000000000000002}
    """
    rows = list(records)
    keys = ("target", "running", "factor", "rate")
    target, running, factor, rate = (
        [row[f"tr/{key}"] for row in rows if f"tr/{key}" in row] for key in keys
    )
    tracked = [row for row in rows if "tr/target" in row]
    errors = [
        abs(row[key.removesuffix("target") + "running"] - row[key])
        for row in tracked[len(tracked) // 10 :]
        for key in row
        if key.startswith(LAYERS) and key.endswith("/target")
    ]
    summary = {
        "first_target": target[:1],
        "last_target": target[-1:],
        "running_tr": running[-1:],
        "factor": factor[-1:],
        "tracking_error": [fmean(errors) / max(target)] if errors and max(target) > 0 else [],
        "mean_rate": [fmean(rate)] if rate else [],
    }
    return {key: value for key, values in summary.items() for value in values}


def _cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_results(results: Results) -> None:
    """Write results.json to the run's folder."""
    write_json(Path(results["paths"]["folder"]) / RESULTS, results)


def read_results(folder: str | Path) -> Results:
    """Return what `write_results` has written, {} where there is nothing or another file."""
    path = Path(folder) / RESULTS
    results = read_json(path) if path.is_file() else {}
    return results if isinstance(results, dict) else {}  # once a list of rows
