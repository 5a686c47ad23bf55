"""Methods, gradient clipping and curves attached to an optimizer; methods in evaluations."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import evaluator
from detectron2.solver.build import GradientClipType, _create_gradient_clipper
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from tr_det.core import Attached, ConfigError, attach
from tr_det.core.errors import check_among
from tr_det.detection.checkpoint.label import labelled
from tr_det.detection.data.loader import build_train_loader
from tr_det.detection.engine.calibration import bare_model, outside_training
from tr_det.detection.solver.events import EventTelemetry
from tr_det.runtime.checkpoints import save_weights
from tr_det.runtime.options import methods_from, under_methods_key
from tr_det.runtime.run_folder import AVERAGED

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
        lambda: build_train_loader(cfg),
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
    train_data: Callable[[], Iterable[Any]] | None = None,
) -> Attached:
    """Attach the methods that a config names under ``key``, and the curves.

    What evaluations see goes to ``output_dir``, if given. ``train_data`` makes a loader of training
    batches when a method first asks for them.

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
            batches=None if train_data is None else _Forwards(model, train_data),
            around_calibration=EventStorage,  # the calibrating forward is no iteration of the log
        )
    except ConfigError as error:
        raise under_methods_key(error, key) from None
    _ATTACHED[attached.model] = ref(attached), output_dir
    return attached


def clip_from(cfg: CfgNode) -> Callable[[list[Tensor]], None] | None:
    """Return what clips each parameter as ``SOLVER.CLIP_GRADIENTS`` says; None if nothing does.

    Raises:
        ConfigError: unknown CLIP_TYPE.
    """
    node = cfg.SOLVER.CLIP_GRADIENTS
    if not node.ENABLED:
        return None
    kinds = [kind.value for kind in GradientClipType]
    check_among("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", node.CLIP_TYPE, kinds)
    clip_one = _create_gradient_clipper(node)

    def clip(parameters: list[Tensor]) -> None:
        for parameter in parameters:
            clip_one(parameter)

    return clip


class _Forwards:
    """A detector's forwards with losses on the batches of a loader, from its beginning each time.

    Only the detector itself is set to training, for the path of its losses; its layers stay in
    their mode.
    """

    def __init__(self, model: nn.Module, train_data: Callable[[], Iterable[Any]]) -> None:
        self._model, self._train_data = bare_model(model), train_data
        self._loader: Iterable[Any] | None = None

    def __call__(self) -> Iterator[Callable[[], Any]]:
        if self._loader is None:
            self._loader = self._train_data()
        for batch in self._loader:
            yield partial(self._forward, batch)

    def _forward(self, batch: Any) -> None:
        was_training = self._model.training
        self._model.training = True
        try:
            with outside_training(self._model):
                self._model(batch)
        finally:
            self._model.training = was_training


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """Change a model to what its methods want evaluated, saved as `AVERAGED`, and back."""
    bare = bare_model(model)
    found, output_dir = _ATTACHED.get(bare, (None, ""))
    attached = found() if found is not None else None
    if attached is None or not attached.changes_evaluation:
        yield
        return
    with attached.evaluating():
        if output_dir and comm.is_main_process():
            path = os.path.join(output_dir, f"{AVERAGED}.pth")
            save_weights(bare, path, model=labelled(bare.state_dict()))
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
