#!/usr/bin/env python
"""Repeat an analysis of the paper on the embedded digits and print its table.

    tools/study.py tracking           mean |K - R| / R_0 of every TALR rule, by run length
    tools/study.py tr-factor          Table S4: the TR factor lambda
    tools/study.py auto-factor        lambda by hand and by the probe, over models and optimizers
    tools/study.py optimizers         Table S5: seven optimizers, plain and TR-scheduled
    tools/study.py final-target       Table S6: the last target TR
    tools/study.py update-rules       Fig. S5: TALR rules on a step-decayed target
    tools/study.py step-decay         Table S3: plain and TR-scheduled under step decay and cosine
    tools/study.py paired             TR-scheduled against plain, seed by seed, at W2A2 and W1A1
    tools/study.py tuned              how much of that a search of the learning rate gives

Each runs a small ResNet on 8 x 8 digits over several seeds; budgets are minutes, not GPU days, so
orderings are what can be compared with the paper, not accuracies. Writes NAME.json and NAME.md to
output/studies.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tr_det.core.transition import AUTO
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.files import write_json
from tr_det.study.experiment import LEARNING_RATES, Laboratory, Outcome, Run

PAPER = {"tr_update": "additive", "tr_momentum": 0.99}
QUICK = {"tr_update": "pi", "tr_momentum": None}
RULES: dict[str, dict[str, Any]] = {
    "additive, m = 0.99 (the paper's)": PAPER,
    "additive, m = 0.9, gain lr / (R_0 T / 20)": {"tr_update": "additive", "tr_momentum": 0.9},
    "multiplicative (S1), m = 0.9": {"tr_update": "multiplicative", "tr_momentum": 0.9},
    "momentum (S2), m = 0.99": {"tr_update": "momentum", "tr_momentum": 0.99},
    "momentum (S2), m = 0.9": {"tr_update": "momentum", "tr_momentum": 0.9},
    "pi (ours), m from the length": QUICK,
}
Row = dict[str, Any]


class Study:
    """Runs a list of settings over seeds and collects rows."""

    def __init__(self, steps: int, seeds: int) -> None:
        self.laboratory = Laboratory()
        self.steps, self.seeds = steps, seeds

    def rows(self, settings: dict[str, dict[str, Any]], title: str) -> Iterator[Row]:
        """Yield one row per setting, with every seed's accuracy and tracking error."""
        total = tqdm(total=len(settings) * self.seeds, desc=title, unit="run")
        for name, arguments in settings.items():
            outcomes: list[Outcome] = []
            for seed in range(self.seeds):
                arguments = {"steps": self.steps, **arguments}
                outcomes.append(self.laboratory.run(Run(seed=seed, **arguments)))
                total.update()
            row: Row = {"setting": name, "accuracy": [o.accuracy for o in outcomes]}
            if len(outcomes[0].running):
                if arguments.get("tr", {}).get("tr_factor") == AUTO:
                    row["lambda"] = [o.factor for o in outcomes]
                row["tracking error"] = [100 * o.tracking_error() for o in outcomes]
                row["last TR over first target"] = [
                    100 * (o.running[-1] / o.first_target).mean().item() for o in outcomes
                ]
            yield row
        total.close()


def tracking(study: Study, lengths: list[int]) -> list[Row]:
    """Return tracking errors by rule and length."""
    rows = []
    for steps in lengths:
        study.steps = steps
        settings = {}
        for name, tr in RULES.items():
            tr = {"tr_factor": 5e-3, **tr}
            if "gain" in name:  # the documentation's advice for short runs
                tr["tr_gain"] = 0.1 / (5e-3 * 2**0.5 * steps / 20)
            settings[f"{steps:,} steps: {name}"] = {"tr": tr}
        rows += study.rows(settings, f"{steps:,} steps")
    return rows


def tr_factor(study: Study, lengths: list[int]) -> list[Row]:
    """Return accuracies by TR factor, with plain SGD beside them."""
    del lengths
    settings: dict[str, dict[str, Any]] = {"SGD": {"optimizer": "SGD"}}
    for factor in (1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, AUTO):
        settings[f"SGDT, lambda {factor}"] = {"tr": {"tr_factor": factor, **QUICK}}
    return list(study.rows(settings, "TR factor"))


def auto_factor(study: Study, lengths: list[int]) -> list[Row]:
    """Return accuracies with lambda found by the probe and by hand, for other models."""
    del lengths
    settings: dict[str, dict[str, Any]] = {}
    for optimizer, bits in (("SGDT", 1), ("SGDT", 2), ("SGDT", 4), ("AdamT", 2)):
        for factor in (1e-4, 5e-4, 1e-3, 5e-3, AUTO):
            settings[f"{optimizer}, W{bits}A{bits}, lambda {factor}"] = {
                "optimizer": optimizer,
                "bits": bits,
                "tr": {"tr_factor": factor, **QUICK},
            }
    return list(study.rows(settings, "automatic TR factor"))


def optimizers(study: Study, lengths: list[int]) -> list[Row]:
    """Return accuracies of the seven optimizers, plain and TR-scheduled."""
    del lengths
    settings: dict[str, dict[str, Any]] = {}
    for name in ("SGD", "Adam", "NAdam", "Adamax", "AdamW", "RMSprop", "Adagrad"):
        settings[name] = {"optimizer": name}
        settings[f"{name}T"] = {"optimizer": f"{name}T", "tr": {"tr_factor": 5e-3, **QUICK}}
    return list(study.rows(settings, "optimizers"))


def final_target(study: Study, lengths: list[int]) -> list[Row]:
    """Return accuracies by the last target TR."""
    del lengths
    settings = {
        f"final target {final:g}": {"tr": {"tr_factor": 5e-3, "tr_final": final, **QUICK}}
        for final in (0.0, 1e-5, 1e-4, 1e-3)
    }
    return list(study.rows(settings, "final target"))


def update_rules(study: Study, lengths: list[int]) -> list[Row]:
    """Return tracking and accuracy by rule on a target that is divided by 5 after each quarter."""
    del lengths
    settings = {
        name: {"tr": {"tr_factor": 5e-3, "tr_schedule": "step", **tr}}
        for name, tr in RULES.items()
        if "gain" not in name
    }
    return list(study.rows(settings, "update rules"))


def paired(study: Study, lengths: list[int]) -> list[Row]:
    """Return accuracies of plain and TR-scheduled runs and their differences, seed by seed.

    A seed gives both runs of a pair the same full-precision model and the same batches.
    """
    del lengths
    rows: list[Row] = []
    for bits, name in itertools.product((2, 1), ("SGD", "Adam")):
        variants: dict[str, dict[str, Any]] = {
            name: {"optimizer": name},
            f"{name}, weight scales frozen": {"optimizer": name, "learn_weight_scale": False},
            f"{name}T, lambda auto": {"tr": {"tr_factor": AUTO, **QUICK}},
            f"{name}T, lambda 0.005": {"tr": {"tr_factor": 5e-3, **QUICK}},
        }
        settings = {
            f"W{bits}A{bits}, {key}": {"optimizer": f"{name}T", "bits": bits, **arguments}
            for key, arguments in variants.items()
        }
        found = list(study.rows(settings, f"W{bits}A{bits}, {name}"))
        for row in found[1:]:
            pairs = zip(row["accuracy"], found[0]["accuracy"], strict=True)
            row["difference"] = [own - plain for own, plain in pairs]
        rows += found
    return rows


def tuned(study: Study, lengths: list[int]) -> list[Row]:
    """Return accuracies of plain optimizers by learning rate, of TR-scheduled ones by lambda."""
    del lengths
    rows: list[Row] = []
    for bits, name in itertools.product((2, 1), ("SGD", "Adam")):
        usual = LEARNING_RATES.get(name, 1e-3)
        settings: dict[str, dict[str, Any]] = {}
        for factor in (0.3, 1, 3, 10):
            lr = usual * factor
            settings[f"{name}, lr {lr:g}"] = {"optimizer": name, "lr": lr}
        # lr of a TR run is that of the parameters that are not quantized, and where TALR begins.
        usual_lr = [(1, factor) for factor in (2e-3, 5e-3, 1e-2, 2e-2)]
        for times, factor in [*usual_lr, (3, 5e-3), (3, 1e-2), (10, 5e-3), (10, 1e-2)]:
            tr = {"tr_factor": factor, **QUICK}
            lr = usual * times
            key = f"{name}T, lr {lr:g}, lambda {factor:g}"
            settings[key] = {"optimizer": f"{name}T", "lr": lr, "tr": tr}
        settings = {f"W{bits}A{bits}, {k}": {"bits": bits, **v} for k, v in settings.items()}
        rows += study.rows(settings, f"W{bits}A{bits}, {name}")
    return rows


def step_decay(study: Study, lengths: list[int]) -> list[Row]:
    """Return accuracies with LR and target divided by 5 after each quarter, and with cosine."""
    del lengths
    rows: list[Row] = []
    for bits, name in itertools.product((2, 1), ("SGD", "SGDT", "Adam", "AdamT")):
        settings: dict[str, dict[str, Any]] = {
            f"W{bits}A{bits}, {name}, {schedule}": {
                "optimizer": name,
                "bits": bits,
                "schedule": schedule,
                "tr": {"tr_factor": 5e-3, **QUICK},
            }
            for schedule in ("cosine", "step")
        }
        found = list(study.rows(settings, f"W{bits}A{bits}, {name}"))
        pairs = zip(found[1]["accuracy"], found[0]["accuracy"], strict=True)
        found[1]["drop"] = [step - cosine for step, cosine in pairs]
        rows += found
    return rows


STUDIES: dict[str, Callable[[Study, list[int]], list[Row]]] = {
    "tracking": tracking,
    "tr-factor": tr_factor,
    "auto-factor": auto_factor,
    "optimizers": optimizers,
    "final-target": final_target,
    "update-rules": update_rules,
    "step-decay": step_decay,
    "paired": paired,
    "tuned": tuned,
}


def table(rows: list[Row]) -> str:
    """Return rows as a Markdown table of means and standard deviations over seeds."""
    columns = {
        "accuracy": "accuracy, %",
        "difference": "paired difference from plain",
        "drop": "paired difference from cosine",
        "lambda": "lambda found",
        "tracking error": "mean abs(K - R) / R_0, %",
        "last TR over first target": "K at the end / R_0, %",
    }
    columns = {key: title for key, title in columns.items() if any(key in row for row in rows)}
    lines = [
        "| setting | " + " | ".join(columns.values()) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for row in rows:
        cells = [
            spread(row[key], ".4f" if key == "lambda" else ".2f") if key in row else "-"
            for key in columns
        ]
        lines.append(f"| {row['setting']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float], form: str = ".2f") -> str:
    """Return mean and sample standard deviation."""
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


def main() -> None:
    """Parse the command line and run a study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--steps", type=int, default=600, help="updates of a run (default 600)")
    parser.add_argument("--seeds", type=int, default=5, help="runs per setting (default 5)")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[300, 3000], help="of tracking's runs"
    )
    parser.add_argument("--output", type=Path, default=Path("output/studies"))
    args = parser.parse_args()
    if args.seeds < 1 or args.steps < 20 or min(args.lengths) < 20:
        parser.error("--seeds must be at least 1, --steps and --lengths at least 20")
    with one_line_errors():
        args.output.mkdir(parents=True, exist_ok=True)
        repeat(args)


def repeat(args: argparse.Namespace) -> None:
    """Run the study, print its table and write it."""
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    start = time.perf_counter()
    rows = STUDIES[args.study](Study(args.steps, args.seeds), args.lengths)
    details = {
        "study": args.study,
        "steps": args.lengths if args.study == "tracking" else args.steps,
        "seeds": args.seeds,
        "seconds": round(time.perf_counter() - start),
        "machine": f"{platform.machine()}, one thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    write_json(args.output / f"{args.study}.json", {**details, "rows": rows})
    text = table(rows) + "\n\n" + ", ".join(f"{key} {value}" for key, value in details.items())
    (args.output / f"{args.study}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
