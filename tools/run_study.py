#!/usr/bin/env python
"""Make the runs of a study that are missing, and its table.

    tools/run_study.py STUDY.yaml                run what is missing
    tools/run_study.py STUDY.yaml --dry-run      what would be run, and for how long
    tools/run_study.py STUDY.yaml --status       how far it has come
    tools/run_study.py STUDY.yaml --from FILE    take the results of another study.json
    tools/run_study.py STUDY.yaml --slurm partition=gpu timeout_min=600

STUDY.yaml is one of configs/studies, or one of your own. Every run is one of tools/train_net.py or
tools/train_classifier.py in a folder of its own below --output, which is output/studies/NAME by
default and also gets study.json, table.md and table.csv. A study that was stopped or killed goes on
when the same command is given again. Exit status: 1 if runs failed. Keys of a study's file:
tr_det/docs/studies.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from pathlib import Path

from tr_det.runtime.cli import one_line_errors, require
from tr_det.runtime.files import write_text
from tr_det.runtime.processes import is_written, only_writer
from tr_det.runtime.signals import held
from tr_det.study.adopt import Elsewhere
from tr_det.study.check import check_study
from tr_det.study.definition import Study, read_study
from tr_det.study.jobs import Place, Processes, Share, cluster_share, share
from tr_det.study.outcomes import FAILED, Outcomes
from tr_det.study.plan import Plan
from tr_det.study.progress import Progress, cells_table, summary
from tr_det.study.record import without_value, write_record
from tr_det.study.recording import make_record
from tr_det.study.run import Runner
from tr_det.study.states import Clock, needed, searched_rows
from tr_det.study.table import csv_text, markdown

TOOLS = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run, or tell about, a study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--output", type=Path, help="the study's folder")
    parser.add_argument(
        "--workers", type=int, help="runs at once (default: what there is room for)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run (default 1)")
    parser.add_argument(
        "--gpus", type=int, help="GPUs of a run (default 1, if there are any; none with --slurm)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list runs and estimated hours")
    parser.add_argument("--status", action="store_true", help="list the state of each run")
    parser.add_argument(
        "--from", dest="others", type=Path, nargs="+", default=[], metavar="STUDY.JSON",
        help="results of the same runs made elsewhere count",
    )  # fmt: skip
    parser.add_argument(
        "--slurm",
        nargs="*",
        metavar="KEY=VALUE",
        help="submit runs by submitit, with these options",
    )
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # Detectron2's
    with one_line_errors():
        study = read_study(args.study)
        check_study(study)
        folder = args.output or Path("output/studies") / study.name
        outcomes = Outcomes(folder, study.metric, Elsewhere(args.others))
        if args.dry_run or args.status:
            tell(study, outcomes, args)
            return
        with only_writer(folder, "--output"), held():
            failed = run(study, outcomes, args)
    raise SystemExit(1 if failed else 0)


def tell(study: Study, outcomes: Outcomes, args: argparse.Namespace) -> None:
    """Print the runs and their states, or only those that are missing."""
    workers = share_of(args, is_told=True).workers  # a mistake is told before the list
    plan, folder = Plan(study, outcomes), outcomes.folder
    going = [cell.identity for cell in plan.cells() if is_written(cell.folder(folder))]
    print(cells_table(plan, outcomes, going, missing_only=args.dry_run))
    print(summary(plan, outcomes, Clock(study, folder), workers, going))


def share_of(args: argparse.Namespace, is_told: bool = False) -> Share:
    """Return what each run gets."""
    if args.slurm is not None:
        return cluster_share(args.workers, args.threads, args.gpus)
    return share(args.workers, args.threads, args.gpus, is_told=is_told)


def run(study: Study, outcomes: Outcomes, args: argparse.Namespace) -> bool:
    """Make the missing runs and write the tables; return whether any run failed."""
    place: Place
    if study.baseline and len(study.seeds) > 1:
        require("BASELINE, with intervals of differences", "scipy", extra="study")
    folder = outcomes.folder
    if args.slurm is None:
        place = Processes(TOOLS, share_of(args))
    else:
        require("--slurm", "submitit", extra="study")
        from tr_det.study.cluster import Cluster

        place = Cluster(TOOLS, folder, args.slurm, share_of(args))
    words = sys.argv if sys.argv[0].endswith("run_study.py") else ["tools/run_study.py"]
    command = shlex.join(["python", "tools/run_study.py", *words[1:]])
    clock = Clock(study, folder)
    with Progress(clock, place.slots) as progress:

        def write(runner: Runner) -> None:
            record = make_record(runner.plan, outcomes, command=command, running=runner.running)
            write_record(folder, record)
            write_text(folder / "table.md", markdown(record))
            write_text(folder / "table.csv", csv_text(record))
            progress.show(runner)

        runner = Runner(study, folder, outcomes, place, clock, write, progress.say)
        runner.run()
    record = make_record(runner.plan, outcomes, command=command)
    print(markdown(record))
    for name in without_value(record):
        print(f"MEASURES: no run has {name}", file=sys.stderr)
    left = []
    for cell in needed(runner.plan, outcomes):
        outcome = outcomes(cell)
        why = outcome.error if outcome is not None and outcome.state == FAILED else "not run"
        left.append(f"{cell.name}: {why}")
    for name in searched_rows(runner.plan):
        left.append(f"{name}: not run, as its search has found no value")
    for line in left:
        print(line, file=sys.stderr)
    return bool(left)


if __name__ == "__main__":
    main()
