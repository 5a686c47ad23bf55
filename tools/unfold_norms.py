#!/usr/bin/env python
"""Write a checkpoint trained with frozen batch norms as one that trained batch norms go on from.

    tools/unfold_norms.py --output OUT.pth --config-file CONFIG.yaml MODEL.WEIGHTS ZOO.pkl

The config names the model and the training images that statistics are measured on (--batches of
SOLVER.IMS_PER_BATCH); its norms are taken as frozen ones, and nothing is quantized. More KEY VALUE
pairs may follow. OUT.pth computes the same and loads into BN and SyncBN.
"""

from __future__ import annotations

import argparse

from detectron2.utils.logger import setup_logger

from tr_det.detection import QuantCheckpointer, QuantTrainer
from tr_det.detection.config.reading import load_config
from tr_det.detection.data.datasets import check_datasets
from tr_det.detection.modeling.unfold import unfold_norms
from tr_det.runtime.checkpoints import save_weights
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.files import require_writable


def unfold(output: str, config_file: str, batches: int, opts: list[str]) -> None:
    """Convert one checkpoint."""
    require_writable(output)
    own = ["MODEL.QUANT.ENABLED", False, "MODEL.RESNETS.NORM", "FrozenBN"]
    cfg = load_config(config_file, [*opts, *own])
    check_datasets(cfg, ("TRAIN",))
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS='': must name the checkpoint")
    model = QuantTrainer.build_model(cfg)
    QuantCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    count = unfold_norms(model, QuantTrainer.build_train_loader(cfg), batches)
    if not count:
        raise ValueError(
            f"{config_file}: its model has no frozen batch norm after MODEL.RESNETS.NORM"
        )
    save_weights(model, output)
    print(f"{output}: {count} batch norms with statistics of {batches} training batches")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    setup_logger(name="fvcore")
    with one_line_errors():
        unfold(args.output, args.config_file, args.batches, args.opts)


if __name__ == "__main__":
    main()
