"""TR curves in Detectron2's EventStorage, and from there in metrics.json and TensorBoard."""

from __future__ import annotations

import logging

from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from tr_det.core import TransitionScheduled


class TransitionLogger:
    """Callback of a TR-scheduled optimizer that records what its last step used.

    It is called inside ``step``, which every Detectron2 loop runs within an EventStorage, so that
    stock tools record the curves too. Scalars, in shares of the codes per update (TR) and
    learning-rate units (TALR):
    ``tr/target``, ``tr/running``, ``tr/rate``, ``tr/talr`` (means over layers) and, per layer,
    ``tr_layers/<layer>/target``, ``.../running``, ``.../talr``.

    Args:
        period: iterations between two records, >= 1; reading the values synchronises with the
            device.

    Raises:
        ValueError: if period is less than 1.
    """

    def __init__(self, period: int) -> None:
        if period < 1:
            raise ValueError(f"SOLVER.TR.LOG_PERIOD={period}: must be at least 1")
        self.period = period

    def __call__(self, optimizer: TransitionScheduled) -> None:
        """Record, if this iteration is one of the period's."""
        try:
            storage = get_event_storage()
        except AssertionError:  # outside a training loop
            return
        if (storage.iter + 1) % self.period:
            return
        metrics = optimizer.transition_metrics()
        if not metrics.names:
            return
        columns = {
            "target": metrics.target.tolist(),
            "running": metrics.running.tolist(),
            "talr": metrics.talr.tolist(),
            "rate": metrics.rate.tolist(),
        }
        means = {key: sum(values) / len(values) for key, values in columns.items()}
        for key, value in means.items():
            storage.put_scalar(f"tr/{key}", value, smoothing_hint=False)
        for index, name in enumerate(metrics.names):
            layer = name.removesuffix(".weight")
            for key in ("target", "running", "talr"):
                storage.put_scalar(
                    f"tr_layers/{layer}/{key}", columns[key][index], smoothing_hint=False
                )
        if comm.is_main_process():
            logging.getLogger(__name__).info(
                "TR: target %.2e  running %.2e  TALR %.2e (means over %d layers)",
                means["target"],
                means["running"],
                means["talr"],
                len(metrics.names),
            )
