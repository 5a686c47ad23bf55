"""The core's methods in Detectron2's loops: attached with the optimizer, heeded by evaluations."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary, ref

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import evaluator
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from tr_det.core import Attached, ConfigError, attach
from tr_det.detection.clipping import clip_from
from tr_det.detection.events import EventTelemetry
from tr_det.training.checkpoint import AVERAGED, save_weights
from tr_det.training.options import methods_from, under_methods_key

_ATTACHED: WeakKeyDictionary[nn.Module, tuple[ref[Attached], str]] = WeakKeyDictionary()


def attach_from(cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer) -> Attached:
    """Attach ``SOLVER.METHODS``, gradient clipping and the curves.

    Raises:
        ConfigError: naming the key.
    """
    return attach_all(
        cfg.SOLVER.METHODS,
        "SOLVER.METHODS",
        model,
        optimizer,
        cfg.SOLVER.MAX_ITER,
        cfg.SOLVER.TR.LOG_PERIOD,
        cfg.OUTPUT_DIR,
        clip_from(cfg),
    )


def attach_all(
    methods: Sequence[str],
    key: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    log_period: int,
    output_dir: str = "",
    clip: Callable[[list[Tensor]], None] | None = None,
) -> Attached:
    """Attach the methods that a config names under ``key``, and the curves.

    What evaluations see goes to ``output_dir``, if given.

    Raises:
        ConfigError: naming the key.
    """
    built = [*methods_from(methods, key), EventTelemetry(log_period)]
    try:
        attached = attach(
            built,
            model,
            optimizer,
            total_steps,
            clip=clip,
            around_calibration=EventStorage,  # the calibrating forward is no iteration of the log
        )
    except ConfigError as error:
        raise under_methods_key(error, key) from None
    _ATTACHED[attached.model] = ref(attached), output_dir
    return attached


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """Make a model what shall be evaluated, and keep that as `AVERAGED`; afterwards undo it."""
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    found, output_dir = _ATTACHED.get(bare, (None, ""))
    attached = found() if found is not None else None
    if attached is None or not attached.changes_evaluation:
        yield
        return
    with attached.evaluating():
        if output_dir and comm.is_main_process():
            path = os.path.join(output_dir, f"{AVERAGED}.pth")
            save_weights(bare, path)
            logging.getLogger(__name__).info("Evaluating %s, which has just been written", path)
        yield


def evaluate_through_methods() -> None:
    """Let Detectron2's ``inference_on_dataset`` see a model as methods want it evaluated.

    For tools that do not evaluate by `QuantTrainer`; a second call changes nothing.
    """
    inner = evaluator.inference_context
    if getattr(inner, "through_methods", False):
        return

    @contextmanager
    def inference_context(model: nn.Module) -> Iterator[None]:
        with as_evaluated(model), inner(model):
            yield

    inference_context.through_methods = True  # type: ignore[attr-defined]
    evaluator.inference_context = inference_context
