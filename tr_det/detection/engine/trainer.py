"""Detectron2's DefaultTrainer with the project's optimizer, checkpointer and COCO evaluation."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from tr_det.core.errors import check
from tr_det.detection.checkpoint.checkpointer import QuantCheckpointer
from tr_det.detection.data.datasets import check_test_dataset, named_dataset_errors
from tr_det.detection.data.loader import build_train_loader
from tr_det.detection.engine.amp import build_loop
from tr_det.detection.engine.calibration import RepeatablePreciseBN
from tr_det.detection.engine.ending import EndOnSignal, mistakes_in_one_line
from tr_det.detection.engine.records import (
    Checkpoints,
    Evaluation,
    LearningRate,
    Records,
    own_writers,
)
from tr_det.detection.engine.results import ResultsWriter
from tr_det.detection.engine.resume import RunState, check_resumed_groups, repeatable_scripts
from tr_det.detection.modeling.cost import log_cost
from tr_det.detection.solver.methods import as_evaluated
from tr_det.detection.solver.optimizers import build_optimizer
from tr_det.runtime.calibration import batch_size_named, share_statistics
from tr_det.runtime.damage import check_optimizer_state
from tr_det.runtime.metrics import METRICS
from tr_det.runtime.results import RESULTS
from tr_det.runtime.run_folder import set_aside
from tr_det.runtime.signals import at_once


class QuantTrainer(DefaultTrainer):
    """Trains quantized and full-precision detectors; everything not named here is DefaultTrainer's.

    A run that is stopped and resumed, in another process and with any number of loader workers,
    goes on as if it had not been stopped: on the CPU bit for bit.

    Args:
        cfg: the config; ``SEED`` < 0 draws a seed, which the checkpoints keep.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's own, but the same in the same order: that one chooses the training
        # loop and wraps the model for processes with GPUs only.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = _with_seed(self.auto_scale_workers(cfg, comm.get_world_size()))
        model = self.build_model(cfg)
        self.cost = log_cost(model, cfg)
        optimizer = self.build_optimizer(cfg, model)
        for name in cfg.DATASETS.TEST:  # what else would be found at the first evaluation only
            self._check_test_dataset(cfg, name, may_lack_annotations=False)
        loader = self.build_train_loader(cfg)
        # On a CPU DistributedDataParallel must not be given GPUs.
        devices = {"device_ids": None} if torch.device(cfg.MODEL.DEVICE).type == "cpu" else {}
        model = create_ddp_model(model, broadcast_buffers=False, **devices)
        self._trainer = build_loop(cfg, model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = QuantCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial=cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
            keep=cfg.SOLVER.KEEP_CHECKPOINTS,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

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
    @at_once()
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate what methods make of the model, in all processes with the same statistics."""
        with as_evaluated(model):
            share_statistics(model)
            results: dict[str, Any] = super().test(cfg, model, evaluators)
        return results

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Build the training loader; a broken annotation file is named."""
        with named_dataset_errors(cfg.DATASETS.TRAIN):
            return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build a test loader; broken annotations and images are named."""
        cls._check_test_dataset(cfg, dataset_name, may_lack_annotations=True)
        with named_dataset_errors([dataset_name]):
            return super().build_test_loader(cfg, dataset_name)

    @classmethod
    def _check_test_dataset(cls, cfg: CfgNode, name: str, may_lack_annotations: bool) -> None:
        own = cls.build_evaluator.__func__ is QuantTrainer.build_evaluator.__func__  # type: ignore[attr-defined]
        check_test_dataset(cfg, name, own, may_lack_annotations)

    def build_hooks(self) -> list[hooks.HookBase]:
        """Build DefaultTrainer's hooks, records that no stop loses, and our run state."""
        built: list[hooks.HookBase] = []
        loaders = [self.data_loader]
        solver = self.cfg.SOLVER
        logs = solver.TR.LOG_PERIOD
        periods = [min(20, logs), logs, solver.CHECKPOINT_PERIOD]
        records = Records(self.cfg.OUTPUT_DIR, periods)
        for hook in super().build_hooks():
            if isinstance(hook, hooks.PeriodicWriter):
                hook._writers = own_writers(hook._writers)
                hook._period = min(hook._period, logs)
            elif isinstance(hook, hooks.LRScheduler):
                hook = LearningRate()
            elif isinstance(hook, hooks.PreciseBN) and not hook._disabled:
                loaders.append(hook._data_loader)
                hook = RepeatablePreciseBN(
                    hook._period, hook._model, hook._data_loader, hook._num_iter
                )
            elif isinstance(hook, hooks.PeriodicCheckpointer):  # in the first process only
                built.append(records)
                hook = Checkpoints(self.checkpointer, solver.CHECKPOINT_PERIOD)
            elif isinstance(hook, hooks.EvalHook):
                hook = Evaluation(hook, records if comm.is_main_process() else None)
            built.append(hook)
        self.run_state = RunState(
            self.cfg.SEED, solver.IMS_PER_BATCH, solver.CHECKPOINT_PERIOD, loaders
        )
        # After what changes the model, before evaluations, which the resumed run makes.
        place = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        built.insert(place, EndOnSignal())
        # First, which is the same place in every process.
        return [self.run_state, *built, ResultsWriter(self.cost)]

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the run's last whole checkpoint, if there is one and ``resume``.

        Otherwise begin with ``MODEL.WEIGHTS``.

        Raises:
            ValueError: the checkpoint is past this run's end, or does not fit.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self.checkpointer.resumed:
            self.start_iter = self.iter + 1  # a checkpoint has the iteration that it ends
            fits = self.start_iter <= self.max_iter
            allowed = f"at least {self.start_iter}, which the run to resume has made"
            check("SOLVER.MAX_ITER", self.max_iter, fits, allowed)

    def train(self) -> Any:
        """Train from ``start_iter`` to ``max_iter``; return the last evaluation's results.

        Raises:
            ConfigError: batches are too small for the model's batch norms.
            FloatingPointError: the run has diverged.
        """
        with mistakes_in_one_line():
            return super().train()

    def before_train(self) -> None:
        """Begin; a new run leaves nothing of an earlier one that it could be resumed from."""
        if self.start_iter == 0:
            comm.synchronize()  # others may still read MODEL.WEIGHTS from there
            if comm.is_main_process():
                set_aside(self.cfg.OUTPUT_DIR, METRICS, RESULTS)
        super().before_train()

    def after_train(self) -> None:
        """End; a run that was resumed at its end counts one iteration too many."""
        self.iter: int = min(self.iter, self.max_iter)
        super().after_train()

    def run_step(self) -> None:
        """Train one iteration."""
        self.run_state.begin_step()
        images = self.cfg.SOLVER.IMS_PER_BATCH
        with (
            repeatable_scripts(torch.device(self.cfg.MODEL.DEVICE)),
            batch_size_named("SOLVER.IMS_PER_BATCH", images),
        ):
            super().run_step()

    def state_dict(self) -> dict[str, Any]:
        """Return the trainer's state, with the optimizer's also on v0.6."""
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the trainer's state.

        Raises:
            ValueError: the checkpoint holds no optimizer.
        """
        iteration = state_dict["iteration"]
        if not (isinstance(iteration, int) and iteration >= 0):
            raise ValueError(f"iteration={iteration!r}: must be an integer, not negative")
        TrainerBase.load_state_dict(self, state_dict)
        if RunState.__qualname__ not in state_dict.get("hooks", {}):
            logging.getLogger(__name__).warning(
                "The checkpoint holds no seed and no loss normalizer: the run goes on, but not "
                "exactly as if it had not been stopped"
            )
        if "_trainer" not in state_dict:  # Detectron2 v0.6's own trainer does not save it
            raise ValueError(
                "the checkpoint to resume holds no optimizer; start a new run from its weights: "
                "MODEL.WEIGHTS, without --resume"
            )
        saved = state_dict["_trainer"]["optimizer"]["param_groups"]
        check_resumed_groups(saved, self.optimizer.param_groups, self.cfg)
        self._trainer.load_state_dict(state_dict["_trainer"])
        check_optimizer_state(self.optimizer)


def _with_seed(cfg: CfgNode) -> CfgNode:
    """Return the config with a seed that all processes share, drawn if ``SEED`` < 0."""
    if cfg.SEED >= 0:
        return cfg
    seeded = cfg.clone()
    seeded.defrost()
    seeded.SEED = comm.shared_random_seed()
    if cfg.is_frozen():
        seeded.freeze()
    return seeded


def _inference_folder(cfg: CfgNode, dataset_name: str) -> str:
    """Return where detections are written: a folder for each test dataset, if there are several."""
    folder = f"{cfg.OUTPUT_DIR}/inference"
    return f"{folder}/{dataset_name}" if len(cfg.DATASETS.TEST) > 1 else folder
