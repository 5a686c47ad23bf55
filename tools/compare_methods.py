#!/usr/bin/env python
"""Train the embedded detector with every quantizer and method, and print one table.

    tools/compare_methods.py                 everything, 300 iterations each
    tools/compare_methods.py quantizers      every registered quantizer, weights and inputs alike
    tools/compare_methods.py maps            PARQ and BinaryRelax over fitted levels
    tools/compare_methods.py methods         what accompanies training, with SGD and with SGDT
    tools/compare_methods.py scales          TR scheduling with frozen and with trained scales

Each variant is one change of the config of configs/digits (SGD, W4A4) and one run of
tools/train_net.py. A variant that has a result is not run again. Writes methods.json and
methods.md to output/methods.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tr_det.core import METHODS, QUANTIZERS, ConfigError
from tr_det.core.quantizers import Spec
from tr_det.runtime.files import write_json
from tr_det.runtime.metrics import read_records

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/digits/retinanet_R18_half_w4a4_sgd.yaml"
TR = ["SOLVER.OPTIMIZER", "SGDT", "MODEL.QUANT.LEARN_WEIGHT_SCALE", "False"]
TR += ["SOLVER.TR.FACTOR", "0.005", "SOLVER.TR.MOMENTUM", "0.9", "SOLVER.TR.UPDATE", "momentum"]
SHORT = {  # the defaults are for tens of thousands of updates
    "tracker": "momentum=0.02",
    "freezing": "threshold=0.06",
    "weight_average": "decay=0.98",
    "bn_reestimation": "batches=20",
}
Variant = tuple[str, str, list[str]]
"""Group, name, config pairs."""


def main() -> None:
    """Run the groups of variants and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", help=f"of {list(GROUPS)}; default: all")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run (default 1)")
    parser.add_argument("--output", type=Path, default=Path("output/methods"))
    args = parser.parse_args()
    unknown = [group for group in args.groups if group not in GROUPS]
    if unknown:
        parser.error(f"{unknown[0]!r}: must be one of {list(GROUPS)}")
    results = []
    for group in args.groups or GROUPS:
        for variant in GROUPS[group]():
            results.append(result_of(variant, args))
            write_json(args.output / "methods.json", results)
    text = table(results)
    (args.output / "methods.md").write_text(text)
    print(text)


def quantizers() -> Iterator[Variant]:
    """Yield every quantizer, for weights and inputs as far as it supports them."""
    for name, cls in sorted(QUANTIZERS.items()):
        pairs, label = [], name
        for part, role in (("WEIGHT", "weight"), ("ACT", "input")):
            if role in cls.roles:
                pairs += [f"MODEL.QUANT.{part}_QUANTIZER", name]
        if cls.roles != ("weight", "input"):
            label += f", {cls.roles[0]}s only"
        if "weight" in cls.roles:
            try:
                cls(Spec(4, True, "weight"))
            except ConfigError:
                pairs += ["MODEL.QUANT.WEIGHT_BITS", "2"]
                label += ", W2A4"
        yield "quantizers", label, pairs
        if name in ("dorefa", "qnet"):  # on inputs they ruin a trained detector: docs/methods.md
            yield "quantizers", f"{name}, weights only", pairs[:2]


def maps() -> Iterator[Variant]:
    """Yield PARQ's and BinaryRelax's maps over each kind of fitted levels."""
    for levels in ("lsbq", "uniform"):
        for prox in ("parq", "binary_relax"):
            pairs = ["MODEL.QUANT.WEIGHT_QUANTIZER", levels]
            pairs += ["MODEL.QUANT.WEIGHT_OPTIONS", f'["prox={prox}", "end=0.8"]']
            yield "maps", f"{prox} over {levels}", pairs


def methods() -> Iterator[Variant]:
    """Yield every method alone and all of them together."""
    named = [f"{name} {SHORT.get(name, '')}".strip() for name in sorted(METHODS)]
    alone = {text.split()[0]: [text] for text in named if text.split()[0] != "tracker"}
    chosen = {"none": [], **alone, "all": named}  # the tracker alone changes no number
    for optimizer, pairs in (("SGD", []), ("SGDT", TR)):
        for label, texts in chosen.items():
            if label == "freezing":  # which adds the tracker, with its long memory
                texts = [f"tracker {SHORT['tracker']}", *texts]
            yield "methods", f"{optimizer}, {label}", [*pairs, "SOLVER.METHODS", json.dumps(texts)]


def scales() -> Iterator[Variant]:
    """Yield TR scheduling with frozen scales, and with trained ones in both ways."""
    for bits in ("4", "2"):
        for quantizer in ("fixed_grid", "lsq"):
            own = []
            for part in ("WEIGHT", "ACT"):
                own += [f"MODEL.QUANT.{part}_QUANTIZER", quantizer]
                own += [f"MODEL.QUANT.{part}_BITS", bits]
            for way in ("frozen", "by_weight", "sum"):
                trained = ["MODEL.QUANT.LEARN_WEIGHT_SCALE", str(way != "frozen")]
                pairs = [*TR, *own, *trained, "SOLVER.TR.SCALES", way]
                yield "scales", f"{quantizer} W{bits}A{bits}, {way}", pairs


GROUPS = {"quantizers": quantizers, "maps": maps, "methods": methods, "scales": scales}


def result_of(variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """Return a variant's result, from a run if there is none yet."""
    group, name, pairs = variant
    words = "".join(c if c.isalnum() else " " for c in f"{group} {name}").split()
    folder = args.output / f"{'_'.join(words)}_{args.iterations}_{args.seed}"
    path = folder / "result.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    pairs = [*pairs, "SOLVER.MAX_ITER", str(args.iterations), "SEED", str(args.seed)]
    pairs += ["OUTPUT_DIR", str(folder), "SOLVER.CHECKPOINT_PERIOD", "1000000"]
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(CONFIG)]
    threads = {"OMP_NUM_THREADS": str(args.threads)}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [*command, *pairs],
            cwd=ROOT,
            env=os.environ | threads,
            stdout=output,
            stderr=output,
            preexec_fn=_end_with_parent,
        )
        _, status, usage = os.wait4(process.pid, 0)
    result: dict[str, Any] = {"group": group, "name": name, "pairs": pairs, "status": status}
    if status == 0:
        records = read_records(folder / "metrics.json")
        result |= {
            "AP": next(r["bbox/AP"] for r in reversed(records) if "bbox/AP" in r),
            "seconds": statistics.median(r["time"] for r in records if "time" in r),
            "memory_mb": usage.ru_maxrss / 1024,  # KB on Linux
        }
        curves = [r for r in records if "tr/rate" in r]
        for key in ("rate", "by_scale", "frozen"):
            result[key] = statistics.mean(r[f"tr/{key}"] for r in curves) if curves else 0.0
    result |= {"torch": torch.__version__, "cpu": platform.processor(), "threads": args.threads}
    write_json(path, result)
    print(f"{name}: AP {result.get('AP', float('nan')):.1f}", flush=True)
    return result


def _end_with_parent() -> None:
    """Have the system kill this process, just forked, when its parent is gone; Linux only."""
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    head = ["variant", "AP", "s per iteration", "peak MB", "mean TR, %", "by scales, %"]
    rows = [head, ["---"] * len(head)]
    for result in results:
        if "AP" not in result:
            rows.append([result["name"], "failed", *[""] * 4])
            continue
        numbers = [f"{result['AP']:.1f}", f"{result['seconds']:.3f}", f"{result['memory_mb']:,.0f}"]
        numbers += [f"{100 * result[key]:.3f}" for key in ("rate", "by_scale")]
        rows.append([result["name"], *numbers])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
