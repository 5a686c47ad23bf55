"""Detectron2's DefaultTrainer with the project's optimizer, checkpointer and COCO evaluation."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import COCOEvaluator
from torch import nn

from tr_det.core import quantized_layers
from tr_det.detection.checkpoint import QuantCheckpointer
from tr_det.detection.data import named_dataset_errors
from tr_det.detection.solver import build_optimizer


class QuantTrainer(DefaultTrainer):
    """Trains quantized and full-precision detectors; everything not named here is DefaultTrainer's.

    On Detectron2 v0.6, whose DefaultTrainer does not checkpoint the optimizer, this one does.
    """

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model; quantization that is asked for must happen."""
        model = super().build_model(cfg)
        if cfg.MODEL.QUANT.ENABLED and not any(quantized_layers(model)):
            raise ValueError(
                f"MODEL.QUANT.ENABLED=True, but {cfg.MODEL.META_ARCHITECTURE} with "
                f"{cfg.MODEL.BACKBONE.NAME} has no quantized layer; use QuantRetinaNet or one of "
                "the quantized backbones"
            )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build ``cfg.SOLVER.OPTIMIZER``."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        """Return COCO evaluation with pycocotools' official implementation."""
        return COCOEvaluator(
            dataset_name,
            output_dir=output_folder or _inference_folder(cfg, dataset_name),
            use_fast_impl=False,
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Build the training loader; a broken annotation file is named."""
        with named_dataset_errors(cfg.DATASETS.TRAIN):
            return super().build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build a test loader; a broken annotation file is named."""
        with named_dataset_errors([dataset_name]):
            return super().build_test_loader(cfg, dataset_name)

    def build_hooks(self) -> list[hooks.HookBase]:
        """Build DefaultTrainer's hooks, around our checkpointer, writing when TR is recorded."""
        # DefaultTrainer makes its checkpointer itself, just before it calls this.
        self.checkpointer = QuantCheckpointer(
            self.checkpointer.model,
            self.cfg.OUTPUT_DIR,
            allow_partial=self.cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        built = super().build_hooks()
        for hook in built:
            if isinstance(hook, hooks.PeriodicWriter):
                hook._period = max(1, min(hook._period, self.cfg.SOLVER.TR.LOG_PERIOD))
        return built

    def state_dict(self) -> dict[str, Any]:
        """Return the trainer's state, with the optimizer's also on v0.6."""
        state = super().state_dict()
        state.setdefault("_trainer", self._trainer.state_dict())
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the trainer's state."""
        super().load_state_dict(state_dict)
        if "_trainer" not in super().state_dict():  # v0.6; later versions have done it
            self._trainer.load_state_dict(state_dict["_trainer"])


def _inference_folder(cfg: CfgNode, dataset_name: str) -> str:
    """Return where detections are written: a folder for each test dataset, if there are several."""
    folder = f"{cfg.OUTPUT_DIR}/inference"
    return f"{folder}/{dataset_name}" if len(cfg.DATASETS.TEST) > 1 else folder
