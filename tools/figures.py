#!/usr/bin/env python
"""Repeat a figure of the paper on the embedded digits, or draw it of runs that are there.

    tools/figures.py tr-scheduling    Fig. S3: TR, TALR, latent weights and transition points
    tools/figures.py step-sizes       Fig. 1: effective step sizes of SGD and SGDT
    tools/figures.py step-decay       Fig. S4: SGD and SGDT under step decay

With --run FOLDER ... nothing is trained: the pictures are of runs of tools/train_classifier.py, on
whatever data, from the metrics.json and the checkpoints in their folders. run.log_period and
run.eval_period set how fine they are; run.checkpoint_period and run.keep_checkpoints, of when there
are latent weights (four times at most).

Writes NAME.png and NAME.json to output/studies; runs that are made here are in folders below
output/studies/NAME and are made once. Table S3 is configs/studies/digits/step_decay.yaml.
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
from tr_det.study.figure_runs import run_cell, settings
from tr_det.study.figures import COLOURS, FIGURES, draw
from tr_det.study.history import History, read_history

OWN = ("steps", "bits", "optimizer", "factor", "seed")
"""Options of the runs that are made here."""


def main() -> None:
    """Parse the command line and make the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--run", type=Path, nargs="+", metavar="FOLDER", help="draw these runs")
    parser.add_argument("--steps", type=int, default=1200, help="updates of a run (default 1200)")
    parser.add_argument("--bits", type=int, default=2, help="of weights and inputs (default 2)")
    parser.add_argument("--optimizer", default="SGD", choices=["SGD", "Adam"], help="plain one")
    parser.add_argument("--factor", default=AUTO, help="lambda; auto (the default) finds it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/studies"))
    args = parser.parse_args()
    if args.steps < 40:
        parser.error("--steps must be at least 40")
    own = [key for key in OWN if getattr(args, key) != parser.get_default(key)]
    if args.run and own:
        parser.error(f"--{own[0]} is of runs that are made here, not of those given by --run")
    with one_line_errors():
        write(args, read(args, args.run or make(args)))


def make(args: argparse.Namespace) -> list[Path]:
    """Make the runs that are not there yet; return their folders."""
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    more = {
        "tr.factor": args.factor,
        "solver.schedule": "step" if args.figure == "step-decay" else "cosine",
        "solver.iterations": args.steps,
        "run.eval_period": max(1, args.steps // 30),
        "run.checkpoint_period": max(1, args.steps // 12),
        "run.keep_checkpoints": 0,
    }
    plain = [] if args.figure == "tr-scheduling" else [args.optimizer]
    folders = []
    for name in [f"{args.optimizer}T", *plain]:
        cell = f"{name}_w{args.bits}_lambda_{args.factor}_{args.steps}_updates_seed{args.seed}"
        folders.append(args.output / args.figure / cell)
        run_cell(folders[-1], settings(name, args.bits, more), args.seed, args.output)
    return folders


def read(args: argparse.Namespace, folders: list[Path]) -> dict[str, History]:
    """Return the histories of runs by labels; a folder's name alone may be that of another."""
    alone = args.figure == "tr-scheduling"
    most = 1 if alone else len(COLOURS)
    if len(folders) > most:
        raise ValueError(f"--run: {len(folders)} folders; {args.figure} draws at most {most}")
    above = os.path.commonpath([folder.resolve().parent for folder in folders])
    histories = {}
    for folder in folders:
        history = read_history(folder)
        optimizer = history.config.solver.optimizer
        if alone and not history.config.solver.scheduled:
            raise ValueError(f"{folder}: a run of {optimizer}, which has no TR scheduling")
        if alone and not history.latents:
            raise ValueError(f"{folder}: has no checkpoint, whose weights would be shown")
        histories[f"{optimizer}, {folder.resolve().relative_to(above)}"] = history
    return histories


def write(args: argparse.Namespace, histories: dict[str, History]) -> None:
    """Write the picture and its numbers."""
    args.output.mkdir(parents=True, exist_ok=True)
    titles = {title(history) for history in histories.values()}
    common = titles.pop() if len(titles) == 1 else "runs of several settings"
    alone = f"{next(iter(histories))}: " if len(histories) == 1 else ""
    picture = args.output / f"{args.figure}.png"
    draw(picture, args.figure, histories, alone + common)
    numbers = {label: summary(history) for label, history in histories.items()}
    made = {} if args.run else {"steps": args.steps}
    write_json(args.output / f"{args.figure}.json", {**made, "runs": numbers})
    width = max(6, *(len(label) + 2 for label in numbers))
    for label, values in numbers.items():
        text = "  ".join(f"{key} {value:.3g}" for key, value in values.items())
        print(f"{label:<{width}}{text}")
    print(picture)


def title(history: History) -> str:
    """Return what a run was of."""
    config = history.config
    bits, schedule = config.quant.bits.upper(), config.solver.schedule
    return f"{config.model.name} on {config.data.name}, {bits}, {schedule} schedule"


def summary(history: History) -> dict[str, Any]:
    """Return the numbers that the pictures are read for: first and last tenth of a run."""
    size, distance = history.step_size.values, history.distance.values
    tenth = max(1, len(size) // 10)
    numbers = {
        "accuracy": history.final_accuracy,
        "first step size": size[:tenth].mean().item(),
        "last step size": size[-tenth:].mean().item(),
        "first distance": distance[:tenth].mean().item(),
        "last distance": distance[-tenth:].mean().item(),
    }
    if history.latents:
        last = history.latents[max(history.latents)]
        clipped = (last == last.min()) | (last == last.max())  # beyond them no gradient passes
        numbers[f"clipped in {history.layer}, %"] = 100 * clipped.float().mean().item()
    return numbers


if __name__ == "__main__":
    main()
