#!/usr/bin/env python
"""Run the demo: RetinaNet before and after 4-bit QAT on the embedded dataset, in one table.

With --data bccd=FOLDER the same on photographs: FOLDER is what tools/prepare_dataset.py wrote,
of BCCD or of images of your own. The full-precision model is trained first.

tools/demo.sh installs what is needed first. The phases are in tr_det/detection/demo.
"""

from __future__ import annotations

import argparse
import shlex
import warnings
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "tr_det/digits/weights/retinanet_R18_half_fp.pth"
CONFIG = ROOT / "configs/digits/retinanet_R18_half_w4a4_sgdt.yaml"
SHORT, FULL = 1000, 5000
BCCD_CONFIGS = ROOT / "configs/BCCD"
BACKBONES = ("R18_half", "efficientnet_lite0")
BCCD_SHORT = 400


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=4, help="of weights and activations, 1 to 8")
    parser.add_argument("--optimizer", default="SGDT", help="SGD, SGDT, Adam, AdamT, AdamW, ...")
    parser.add_argument(
        "--iters",
        type=int,
        help=f"QAT iterations (default: {SHORT}; with --data {BCCD_SHORT})",
    )
    parser.add_argument(
        "--full",
        dest="iters",
        action="store_const",
        const=FULL,
        help=f"train longer, for a better result: {FULL} iterations",
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="export the trained model to ONNX, too, prove it and evaluate the files",
    )
    parser.add_argument("--data", metavar="bccd=FOLDER", help="photographs, prepared")
    parser.add_argument(
        "--backbone",
        choices=BACKBONES,
        help="with --data: from scratch (default), or from ImageNet weights that timm downloads "
        "unless MODEL.TIMM.WEIGHTS is their file",
    )
    parser.add_argument(
        "--fp-iters", type=int, default=0, help="with --data: of the full-precision training"
    )
    parser.add_argument(
        "--output", type=Path, help="folder (default: output/demo; with --data output/demo_bccd)"
    )
    parser.add_argument(
        "opts", nargs="*", default=[], metavar="KEY VALUE", help="e.g. SOLVER.BASE_LR 0.02"
    )
    args = parser.parse_intermixed_args()

    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    # Slow to import, so not before --help has been answered.
    from tr_det.detection.demo.run import DemoOptions, run_demo
    from tr_det.runtime.cli import one_line_errors

    with one_line_errors():
        own: dict[str, Any] = {"config_file": CONFIG, "output": Path("output/demo")}
        iterations = SHORT
        if args.data is not None:
            own = data_options(args.data, args.backbone or BACKBONES[0])
            iterations = BCCD_SHORT
        elif args.fp_iters or args.backbone:
            raise ValueError("--fp-iters, --backbone: must be given with --data")
        if args.output is not None:
            own["output"] = args.output
        options = DemoOptions(
            **own,
            weights=WEIGHTS,
            bits=args.bits,
            optimizer=args.optimizer,
            iterations=iterations if args.iters is None else args.iters,
            overrides=tuple(args.opts),
            export=args.export,
            fp_iterations=args.fp_iters,
        )
        results = run_demo(options, say=partial(print, flush=True))
    if results.get("export", {}).get("failures"):
        raise SystemExit(1)


def data_options(text: str, backbone: str) -> dict[str, Any]:
    """Return the options that follow from ``--data bccd=FOLDER`` and ``--backbone``."""
    name, _, folder = text.partition("=")
    if name != "bccd" or not folder:
        raise ValueError(f"--data={text}: must be bccd=FOLDER, a folder of prepare_dataset.py")
    return {
        "config_file": BCCD_CONFIGS / f"retinanet_{backbone}_w4a4_sgdt.yaml",
        "fp_config_file": BCCD_CONFIGS / f"retinanet_{backbone}_fp.yaml",
        "data": f"{name} {shlex.quote(folder)}",
        "output": Path(f"output/demo_{name}"),
    }


if __name__ == "__main__":
    main()
