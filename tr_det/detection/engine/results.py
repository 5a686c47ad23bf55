"""The hook that writes results.json at the end of a detector's training."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import yaml
from detectron2.engine import HookBase
from detectron2.utils import comm

from tr_det.detection.modeling.cost import Cost
from tr_det.runtime.metrics import METRICS, read_records
from tr_det.runtime.results import make_results, write_results
from tr_det.runtime.run_folder import evaluated_checkpoint


class ResultsWriter(HookBase):
    """Writes ``OUTPUT_DIR/results.json`` after the last evaluation.

    Must come after the hooks that evaluate and that write metrics.json.

    Args:
        cost: of the model; None where it could not be counted.
    """

    def __init__(self, cost: Cost | None) -> None:
        self.cost = cost

    def before_train(self) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def after_train(self) -> None:
        """Write, unless the training was stopped by an error."""
        trainer = self.trainer
        if trainer.iter < trainer.max_iter or not comm.is_main_process():
            return
        cfg, folder, cost = trainer.cfg, trainer.cfg.OUTPUT_DIR, {}
        if self.cost is not None:
            cost = {
                "storage_mb": self.cost.megabytes,
                "storage_mb_at_32_bits": self.cost.full_megabytes,
                "bops": self.cost.bops,
            }
        checkpoint = evaluated_checkpoint(folder)
        results = make_results(
            read_records(Path(folder) / METRICS),
            torch.device(cfg.MODEL.DEVICE),
            config=yaml.safe_load(cfg.dump()),
            seed=trainer.run_state.seed,
            metrics=getattr(trainer, "_last_eval_results", {}),
            updates=trainer.max_iter,
            cost=cost,
            seconds=time.perf_counter() - self._began,
            paths={"folder": folder, "checkpoint": checkpoint, "start": cfg.MODEL.WEIGHTS},
        )
        write_results(results)
