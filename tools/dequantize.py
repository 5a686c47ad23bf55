#!/usr/bin/env python
"""Write a quantized checkpoint as one that plain Detectron2 loads, with de-quantized weights.

    tools/dequantize.py --output OUT.pth --config-file configs/... [KEY VALUE ...]

The config must be the checkpoint's own, MODEL.WEIGHTS the checkpoint. OUT.pth has the keys and
shapes of the full-precision model; what the grids did to the scale of outputs is in the weights.
Activations are no longer quantized, nor clipped, and batch norm's statistics are of quantized
ones: expect lower accuracy than the quantized model's, and train on from it. With
MODEL.QUANT.HEAD_INPUT_RELU the head has a ReLU that Detectron2's RetinaNet lacks: load OUT.pth in
QuantRetinaNet with MODEL.QUANT.ENABLED False.
"""

from __future__ import annotations

import argparse

from detectron2.utils.logger import setup_logger

from tr_det.core import dequantize_model
from tr_det.detection import QuantCheckpointer, QuantTrainer
from tr_det.detection.config.reading import load_config_for_cpu
from tr_det.runtime.checkpoints import save_weights
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.files import require_writable


def dequantize(output: str, config_file: str, opts: list[str]) -> None:
    """Convert one checkpoint."""
    require_writable(output)
    cfg = load_config_for_cpu(config_file, opts)
    if not (cfg.MODEL.QUANT.ENABLED and cfg.MODEL.WEIGHTS):
        raise ValueError("MODEL.QUANT.ENABLED, MODEL.WEIGHTS: must be True and name a checkpoint")
    model = QuantTrainer.build_model(cfg)
    QuantCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    try:
        count = dequantize_model(model)
    except RuntimeError as error:  # a full-precision checkpoint
        raise ValueError(f"{cfg.MODEL.WEIGHTS}: {error}") from None
    save_weights(model, output)
    print(f"{output}: {count} layers de-quantized")
    if cfg.MODEL.META_ARCHITECTURE == "QuantRetinaNet" and cfg.MODEL.QUANT.HEAD_INPUT_RELU:
        print("the head's inputs have a ReLU: keep QuantRetinaNet, with MODEL.QUANT.ENABLED False")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    setup_logger(name="fvcore")
    with one_line_errors():
        dequantize(args.output, args.config_file, args.opts)


if __name__ == "__main__":
    main()
