#!/usr/bin/env python
"""Train and evaluate quantized detectors; takes the arguments of Detectron2's train_net.py.

tools/train_net.py --config-file configs/... [--num-gpus N] [--resume] [--eval-only] [KEY VALUE ...]

--num-gpus N starts N processes, on a machine without GPU too; torchrun may start them instead.
"""

from __future__ import annotations

import argparse
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from tr_det.core import is_calibrated
from tr_det.detection import QuantCheckpointer, QuantTrainer, calibrate
from tr_det.detection.config import reading
from tr_det.detection.config.checks import check_evaluated
from tr_det.detection.data.datasets import check_datasets
from tr_det.detection.engine.calibration import update_norms
from tr_det.detection.engine.processes import run_processes
from tr_det.detection.engine.resume import make_way
from tr_det.runtime.checkpoints import check_start
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.processes import from_first, only_writer, rank, restarted
from tr_det.runtime.run_folder import evaluated_checkpoint, last_checkpoint
from tr_det.runtime.signals import held


def load_config(args: argparse.Namespace) -> CfgNode:
    """Return the frozen, checked config of a command line."""
    cfg = reading.load_config(args.config_file, args.opts)
    if args.eval_only:
        check_evaluated(cfg, args.resume)
    resumes = (restarted() or args.resume) and last_checkpoint(cfg.OUTPUT_DIR)
    check_start("MODEL.WEIGHTS", "" if resumes else cfg.MODEL.WEIGHTS)
    trains = not args.eval_only or cfg.TEST.PRECISE_BN.ENABLED
    check_datasets(cfg, ("TRAIN", "TEST") if trains else ("TEST",))
    cfg.freeze()
    return cfg


def evaluate(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    """Evaluate ``MODEL.WEIGHTS`` or, with ``resume``, what the run in ``OUTPUT_DIR`` ended with.

    A model without scales is calibrated first; with TEST.PRECISE_BN batch norms are measured again.
    """
    model = QuantTrainer.build_model(cfg)
    checkpointer = QuantCheckpointer(
        model, cfg.OUTPUT_DIR, allow_partial=cfg.MODEL.ALLOW_PARTIAL_WEIGHTS
    )
    own = from_first(evaluated_checkpoint(cfg.OUTPUT_DIR) if resume and rank() == 0 else "")
    checkpointer.load(own or cfg.MODEL.WEIGHTS, checkpointables=[])
    if not is_calibrated(model):
        calibrate(model, QuantTrainer.build_train_loader(cfg), cfg.MODEL.QUANT.CALIBRATION_BATCHES)
    elif cfg.TEST.PRECISE_BN.ENABLED:
        update_norms(model, QuantTrainer.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER)
    results = QuantTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args: argparse.Namespace) -> Any:
    """Run one process."""
    cfg = load_config(args)
    if args.eval_only:
        # A run that is there keeps its config and log.
        own = with_output(cfg, f"{cfg.OUTPUT_DIR}/inference")
        with only_writer(own.OUTPUT_DIR, "OUTPUT_DIR"):
            set_up(own, args)
            return evaluate(cfg, args.resume)
    resume = restarted() or args.resume
    with only_writer(cfg.OUTPUT_DIR, "OUTPUT_DIR"):
        make_way(cfg, resume)
        set_up(cfg, args)
        trainer = QuantTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        with held():
            return trainer.train()


def with_output(cfg: CfgNode, folder: str) -> CfgNode:
    """Return the config with another output folder."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = folder
    cfg.freeze()
    return cfg


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Write log.txt and config.yaml to the output folder from here on, and seed."""
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tr_det")


def invoke_main() -> None:
    """Parse the command line and start the processes."""
    args = default_argument_parser(epilog=__doc__).parse_args()
    with one_line_errors():
        if not args.config_file:
            raise ValueError("--config-file: must name a YAML file, e.g. one of configs/digits")
        load_config(args)  # here as well, so that a mistake is reported before processes start
        run_processes(main, args)


if __name__ == "__main__":
    invoke_main()
