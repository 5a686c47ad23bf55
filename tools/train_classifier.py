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

from tr_det.classification.config.file import load_config
from tr_det.classification.engine.evaluate_only import evaluate_only
from tr_det.classification.engine.results import table
from tr_det.classification.engine.run import run
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.processes import rank, torchrun_processes

DEFAULT = Path(__file__).parents[1] / "configs/classification/digits/resnet8_sgdt.yaml"

EVAL_ONLY = (
    "evaluate the run's average of weights if it keeps one, else its last checkpoint, or "
    "model.weights if there is none or it is given"
)


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
                rows = evaluate_only(config, start_weights=named)
            else:
                rows = run(config, args.resume)
            if rank() == 0:
                print(table(rows))


if __name__ == "__main__":
    main()
