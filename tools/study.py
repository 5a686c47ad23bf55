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
output/studies. Every run is one of tools/train_classifier.py in a folder of its own below
output/studies/NAME; a study that was stopped goes on, and runs that are finished are only read.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch

from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.processes import only_writer
from tr_det.study.grid import COMPARED, STUDIES
from tr_det.study.report import write_report
from tr_det.study.runner import run_study


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
    lengths = args.lengths if args.study == "tracking" else [args.steps]
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    start = time.perf_counter()
    with one_line_errors(), only_writer(args.output / args.study, "--output"):
        rows = run_study(args.study, lengths, args.seeds, args.output)
        details = {
            "study": args.study,
            "steps": lengths if args.study == "tracking" else args.steps,
            "seeds": args.seeds,
            "seconds": round(time.perf_counter() - start),
            "machine": f"{platform.machine()}, one thread",
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        print(write_report(args.output, details, rows, COMPARED.get(args.study, "")))


if __name__ == "__main__":
    main()
