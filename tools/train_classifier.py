#!/usr/bin/env python
"""Train and evaluate quantized classifiers.

tools/train_classifier.py [--config-file FILE] [--resume] [--eval-only] [KEY VALUE ...]

FILE is one of configs/classification/.
Without arguments: a small ResNet on scikit-learn's digits, first in full precision, then at W2A2
with TR-scheduled SGD. torchrun starts several processes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tr_det.classification.config.reading import load_config
from tr_det.classification.engine.run import evaluate_only, run
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.processes import rank, torchrun_processes
from tr_det.runtime.results import Results, read_results

DEFAULT = Path(__file__).parents[1] / "configs/classification/digits/resnet8_sgdt.yaml"

EVAL_ONLY = (
    "evaluate the run's average of weights if it keeps one, else its last checkpoint, or "
    "model.weights if there is none or it is given"
)


def with_pretraining(results: Results) -> list[Results]:
    """Return the results of the runs that a run builds on, and then its own."""
    start = results["paths"]["start"]
    if not (results["config"]["model"]["pretraining"] and start):
        return [results]
    before = read_results(Path(start).parent)
    return [*(with_pretraining(before) if before else ()), results]


def table(runs: list[Results]) -> str:
    """Return results as text, a line for each run."""
    head = f"{'model':<20}{'bits':>7}{'optimizer':>11}{'top-1':>8}{'top-5':>8}{'loss':>8}"
    lines = [f"{head}{'weight MB':>11}{'updates':>10}{'seconds':>9}"]
    for row in runs:
        config, metrics, updates = row["config"], row["metrics"], row["updates"]
        optimizer = config["solver"]["optimizer"] if updates else "-"
        lines.append(
            f"{config['model']['name']:<20}{config['quant']['bits'].upper():>7}{optimizer:>11}"
            f"{metrics['accuracy']:>8.2f}{metrics['top5']:>8.2f}{metrics['loss']:>8.3f}"
            f"{row['cost']['storage_mb']:>11.3f}{updates:>10,}{row['seconds']:>9.0f}"
        )
    rule = "-" * len(lines[0])
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", type=Path, default=DEFAULT, metavar="FILE")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help=EVAL_ONLY)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    with one_line_errors():
        config = load_config(args.config_file, args.opts)
        with torchrun_processes():
            level = logging.INFO if rank() == 0 else logging.WARNING
            logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
            logging.getLogger("fvcore").setLevel(logging.WARNING)
            if args.eval_only:
                # Weights named on the command line are wanted, as with Detectron2's train_net.py.
                named = "model.weights" in args.opts[::2] and not args.resume
                runs = [evaluate_only(config, named, args.resume)]
            else:
                runs = with_pretraining(run(config, args.resume))
            if rank() == 0:
                print(table(runs))


if __name__ == "__main__":
    main()
