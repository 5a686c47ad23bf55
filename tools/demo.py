#!/usr/bin/env python
"""The main job on the embedded dataset: RetinaNet before and after 4-bit QAT, in one table.

Run by tools/demo.sh, which installs what is needed first.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "tr_det/digits/weights/retinanet_R18_half_fp.pth"
CONFIG = ROOT / "configs/digits/retinanet_R18_half_w4a4_sgdt.yaml"
SHORT, FULL = 1000, 5000


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bits", type=int, default=4, help="bits of weights and activations, 1 to 8 (default 4)"
    )
    parser.add_argument(
        "--optimizer",
        default="SGDT",
        help="SGD, SGDT, Adam, AdamT, AdamW, AdamWT, ... (default SGDT)",
    )
    parser.add_argument("--iters", type=int, help=f"QAT iterations (default {SHORT})")
    parser.add_argument(
        "--full", action="store_true", help=f"train longer, for a better result: {FULL} iterations"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/demo"), help="folder (default output/demo)"
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="more config keys, e.g. SOLVER.BASE_LR 0.02"
    )
    args = parser.parse_args()

    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    # Slow to import, so not before --help has been answered.
    from tr_det.detection.demo.run import DemoOptions, run_demo
    from tr_det.runtime.cli import one_line_errors

    with one_line_errors():
        options = DemoOptions(
            config_file=CONFIG,
            weights=WEIGHTS,
            output=args.output,
            bits=args.bits,
            optimizer=args.optimizer,
            iterations=args.iters or (FULL if args.full else SHORT),
            overrides=tuple(args.opts),
        )
        run_demo(options, say=partial(print, flush=True))


if __name__ == "__main__":
    sys.exit(main())
