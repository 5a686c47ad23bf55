"""TR curves in Detectron2's EventStorage, and from there in metrics.json and TensorBoard."""

from __future__ import annotations

import logging
import math

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor

from tr_det.core import TransitionMetrics, TransitionScheduled


class TransitionLogger:
    """Callback of a TR-scheduled optimizer that records what its steps used.

    It is called inside ``step``, which every Detectron2 loop runs within an EventStorage, so that
    stock tools record the curves too. Scalars, in shares of the codes per update (TR) and
    learning-rate units (TALR):
    ``tr/target``, ``tr/running``, ``tr/rate``, ``tr/talr`` (means over layers), for every step;
    ``tr_layers/<layer>/target``, ``.../running``, ``.../talr``, for every ``period``-th.

    The means wait on the device until values are read, once per period and in one transfer.
    Detectron2's writers write a scalar's latest value only; all of them are in the storage's
    history.

    Args:
        period: iterations between two readings, >= 1; a reading synchronises with the device.

    Raises:
        ValueError: if period is less than 1.
    """

    def __init__(self, period: int) -> None:
        if period < 1:
            raise ValueError(f"SOLVER.TR.LOG_PERIOD={period}: must be at least 1")
        self.period = period
        self._waiting: list[tuple[int, float, Tensor]] = []

    def __call__(self, optimizer: TransitionScheduled) -> None:
        """Keep this step's means; record what waits, if this iteration is one of the period's."""
        try:
            storage = get_event_storage()
        except AssertionError:  # outside a training loop
            return
        metrics = optimizer.transition_metrics()
        if not metrics.names:
            return
        means = torch.stack([metrics.running.mean(), metrics.rate.mean(), metrics.talr.mean()])
        # The target is known on the host.
        self._waiting.append((storage.iter, metrics.target.mean().item(), means))
        if (storage.iter + 1) % self.period == 0:
            self._record(storage, metrics)

    def _record(self, storage: EventStorage, metrics: TransitionMetrics) -> None:
        layers = len(metrics.names)
        columns = [metrics.running, metrics.talr, *(means for *_, means in self._waiting)]
        values = torch.cat(columns).tolist()  # the one transfer
        rows = zip(*[iter(values[2 * layers :])] * 3, strict=True)
        for (iteration, target, _), means in zip(self._waiting, rows, strict=True):
            scalars = dict(zip(("running", "rate", "talr"), means, strict=True), target=target)
            _put(storage, iteration, {f"tr/{key}": value for key, value in scalars.items()})
        self._waiting = []
        targets = metrics.target.tolist()
        for index, name in enumerate(metrics.names):
            layer = f"tr_layers/{name.removesuffix('.weight')}"
            running, talr = values[index], values[layers + index]
            _put(
                storage,
                storage.iter,
                {
                    f"{layer}/target": targets[index],
                    f"{layer}/running": running,
                    f"{layer}/talr": talr,
                },
            )
        if comm.is_main_process():
            logging.getLogger(__name__).info(
                "TR: target %.2e  running %.2e  TALR %.2e (means over %d layers)",
                scalars["target"],
                scalars["running"],
                scalars["talr"],
                layers,
            )


def _put(storage: EventStorage, iteration: int, scalars: dict[str, float]) -> None:
    """Put scalars of an iteration that may be past; v0.6 has no argument for it.

    A target is NaN, and left out, while the TR factor is being found.
    """
    now, storage.iter = storage.iter, iteration
    try:
        for key, value in scalars.items():
            if not math.isnan(value):
                storage.put_scalar(key, value, smoothing_hint=False)
    finally:
        storage.iter = now
