#!/usr/bin/env python
"""Repeat a figure of the paper on the embedded digits.

    tools/figures.py tr-scheduling    Fig. S3: TR, TALR, latent weights and transition points
    tools/figures.py step-sizes       Fig. 1: effective step sizes of SGD and SGDT
    tools/figures.py step-decay       Fig. S4: SGD and SGDT under step decay

Writes NAME.png and NAME.json to output/studies. Table S3 is `tools/study.py step-decay`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from tr_det.classification.experiment import Laboratory, Outcome, Run
from tr_det.classification.figures import draw_step_decay, draw_step_sizes, draw_tr_scheduling
from tr_det.core.transition import AUTO
from tr_det.demo.report import write_json
from tr_det.training.cli import one_line_errors

NAMES = ("tr-scheduling", "step-sizes", "step-decay")


def main() -> None:
    """Parse the command line and make the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=NAMES)
    parser.add_argument("--steps", type=int, default=1200, help="updates of a run (default 1200)")
    parser.add_argument("--bits", type=int, default=2, help="of weights and inputs (default 2)")
    parser.add_argument("--optimizer", default="SGD", choices=["SGD", "Adam"], help="plain one")
    parser.add_argument("--factor", type=float, help="lambda; found by the optimizer if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/studies"))
    args = parser.parse_args()
    if args.steps < 40 or not 1 <= args.bits <= 8:
        parser.error("--steps must be at least 40, --bits from 1 to 8")
    if args.factor is not None and not args.factor > 0:
        parser.error("--factor must be above 0")
    with one_line_errors():
        args.output.mkdir(parents=True, exist_ok=True)
        repeat(args)


def repeat(args: argparse.Namespace) -> None:
    """Make the runs and the picture."""
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    schedule = "step" if args.figure == "step-decay" else "cosine"
    tr = {"tr_factor": args.factor or AUTO, "tr_update": "pi", "tr_momentum": None}
    plain, scheduled = args.optimizer, f"{args.optimizer}T"
    names = [scheduled] if args.figure == "tr-scheduling" else [plain, scheduled]
    common = {"steps": args.steps, "bits": args.bits, "seed": args.seed, "watch": True}
    laboratory = Laboratory()
    outcomes = {
        name: laboratory.run(Run(optimizer=name, schedule=schedule, tr=tr, **common))
        for name in names
    }
    title = f"ResNet-8 on 8 x 8 digits, W{args.bits}A{args.bits}, {schedule} schedule"
    picture = args.output / f"{args.figure}.png"
    if args.figure == "tr-scheduling":
        draw_tr_scheduling(picture, outcomes[scheduled], f"{scheduled}: {title}")
    else:
        draw = draw_step_sizes if args.figure == "step-sizes" else draw_step_decay
        draw(picture, outcomes, title)
    curves = {name: summary(outcome) for name, outcome in outcomes.items()}
    write_json(args.output / f"{args.figure}.json", {"steps": args.steps, "runs": curves})
    for name, values in curves.items():
        print(f"{name:<6}" + "  ".join(f"{key} {value:.3g}" for key, value in values.items()))
    print(picture)


def summary(outcome: Outcome) -> dict[str, Any]:
    """Return the numbers that the pictures are read for: first and last tenth of a run."""
    trace = outcome.trace
    assert trace is not None
    last = trace.latents[max(trace.latents)]
    clipped = (last == last.min()) | (last == last.max())  # beyond them no gradient passes
    tenth = max(1, len(trace.step_size) // 10)
    return {
        "accuracy": outcome.accuracy,
        "first step size": trace.step_size[:tenth].mean().item(),
        "last step size": trace.step_size[-tenth:].mean().item(),
        "first distance": trace.distance[:tenth].mean().item(),
        "last distance": trace.distance[-tenth:].mean().item(),
        f"clipped in {trace.layer}, %": 100 * clipped.float().mean().item(),
    }


if __name__ == "__main__":
    main()
