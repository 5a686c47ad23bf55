#!/usr/bin/env python
"""Repeat a figure of the paper on the embedded digits, or draw it of runs that are there.

    tools/figures.py tr-scheduling    Fig. S3: TR, TALR, latent weights and transition points
    tools/figures.py step-sizes       Fig. 1: effective step sizes of SGD and SGDT
    tools/figures.py step-decay       Fig. S4: SGD and SGDT under step decay

With --run FOLDER ... nothing is trained: the pictures are of runs of tools/train_classifier.py, on
whatever data, from the metrics.json and the checkpoints in their folders. run.log_period and
run.eval_period set how fine they are; run.checkpoint_period and run.keep_checkpoints, of when there
are latent weights (four times at most).

Writes NAME.png and NAME.json to output/studies. Table S3 is `tools/study.py step-decay`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from tr_det.core.transition import AUTO
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.files import write_json
from tr_det.study.course import Course
from tr_det.study.experiment import Laboratory, Run
from tr_det.study.figures import (
    COLOURS,
    draw_step_decay,
    draw_step_sizes,
    draw_tr_scheduling,
)
from tr_det.study.recorded import read_run

NAMES = ("tr-scheduling", "step-sizes", "step-decay")
OWN = ("steps", "bits", "optimizer", "factor", "seed")
"""Options of the runs that are made here."""


def main() -> None:
    """Parse the command line and make the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=NAMES)
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="run.output_dir of runs, finished or not",
    )
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
    own = [key for key in OWN if getattr(args, key) != parser.get_default(key)]
    if args.run and own:
        parser.error(f"--{own[0]} is of runs that are made here, not of those given by --run")
    with one_line_errors():
        args.output.mkdir(parents=True, exist_ok=True)
        title, courses = recorded(args) if args.run else repeated(args)
        draw(args, title, courses)


def recorded(args: argparse.Namespace) -> tuple[str, dict[str, Course]]:
    """Read the runs; return the picture's title and their courses by label."""
    alone = args.figure == "tr-scheduling"
    most = 1 if alone else len(COLOURS)
    if len(args.run) > most:
        raise ValueError(f"--run: {len(args.run)} folders; {args.figure} draws at most {most}")
    # Names alone may be the same.
    above = os.path.commonpath([folder.resolve().parent for folder in args.run])
    titles, courses = [], {}
    for folder in args.run:
        config, course = read_run(folder)
        optimizer, schedule = config.solver.optimizer, config.solver.schedule
        if alone and not config.solver.scheduled:
            raise ValueError(f"{folder}: a run of {optimizer}, which has no TR scheduling")
        if alone and not course.latents:
            raise ValueError(f"{folder}: has no checkpoint, whose weights would be shown")
        courses[f"{optimizer}, {folder.resolve().relative_to(above)}"] = course
        bits = config.quant.bits.upper()
        titles.append(f"{config.model.name} on {config.data.name}, {bits}, {schedule} schedule")
    return titles[0] if len(set(titles)) == 1 else "runs of several settings", courses


def repeated(args: argparse.Namespace) -> tuple[str, dict[str, Course]]:
    """Make the runs; return the picture's title and their courses by optimizer."""
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    schedule = "step" if args.figure == "step-decay" else "cosine"
    tr = {"tr_factor": args.factor or AUTO, "tr_update": "pi", "tr_momentum": None}
    plain, scheduled = args.optimizer, f"{args.optimizer}T"
    names = [scheduled] if args.figure == "tr-scheduling" else [plain, scheduled]
    common = {"steps": args.steps, "bits": args.bits, "seed": args.seed, "watch": True}
    laboratory = Laboratory()
    courses = {
        name: laboratory.run(Run(optimizer=name, schedule=schedule, tr=tr, **common)).course()
        for name in names
    }
    return f"ResNet-8 on 8 x 8 digits, W{args.bits}A{args.bits}, {schedule} schedule", courses


def draw(args: argparse.Namespace, title: str, courses: dict[str, Course]) -> None:
    """Write the picture and its numbers."""
    picture = args.output / f"{args.figure}.png"
    if args.figure == "tr-scheduling":
        ((label, course),) = courses.items()
        draw_tr_scheduling(picture, course, f"{label}: {title}")
    else:
        draw_all = draw_step_sizes if args.figure == "step-sizes" else draw_step_decay
        draw_all(picture, courses, title)
    curves = {label: summary(course) for label, course in courses.items()}
    made = {} if args.run else {"steps": args.steps}
    write_json(args.output / f"{args.figure}.json", {**made, "runs": curves})
    width = max(6, *(len(label) + 2 for label in curves))
    for label, values in curves.items():
        numbers = "  ".join(f"{key} {value:.3g}" for key, value in values.items())
        print(f"{label:<{width}}{numbers}")
    print(picture)


def summary(course: Course) -> dict[str, Any]:
    """Return the numbers that the pictures are read for: first and last tenth of a run."""
    size, distance = course.step_size.values, course.distance.values
    tenth = max(1, len(size) // 10)
    numbers = {
        "accuracy": course.final_accuracy,
        "first step size": size[:tenth].mean().item(),
        "last step size": size[-tenth:].mean().item(),
        "first distance": distance[:tenth].mean().item(),
        "last distance": distance[-tenth:].mean().item(),
    }
    if course.latents:
        last = course.latents[max(course.latents)]
        clipped = (last == last.min()) | (last == last.max())  # beyond them no gradient passes
        numbers[f"clipped in {course.layer}, %"] = 100 * clipped.float().mean().item()
    return numbers


if __name__ == "__main__":
    main()
