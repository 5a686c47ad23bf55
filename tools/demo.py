#!/usr/bin/env python
"""Run the demo: RetinaNet before and after 4-bit QAT on the embedded dataset, in one table.

tools/demo.sh installs what is needed first. The phases are in tr_det/detection/demo.
"""

from __future__ import annotations

import argparse
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
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=4, help="of weights and activations, 1 to 8")
    parser.add_argument("--optimizer", default="SGDT", help="SGD, SGDT, Adam, AdamT, AdamW, ...")
    parser.add_argument("--iters", type=int, default=SHORT, help="QAT iterations")
    parser.add_argument(
        "--full",
        dest="iters",
        action="store_const",
        const=FULL,
        default=argparse.SUPPRESS,
        help=f"train longer, for a better result: {FULL} iterations",
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="export the trained model to ONNX, too, prove it and evaluate the files",
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder")
    parser.add_argument(
        "opts", nargs="*", default=[], metavar="KEY VALUE", help="e.g. SOLVER.BASE_LR 0.02"
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
            iterations=args.iters,
            overrides=tuple(args.opts),
            export=args.export,
        )
        results = run_demo(options, say=partial(print, flush=True))
    if results.get("export", {}).get("failures"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
