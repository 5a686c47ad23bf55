"""The curves of a run in Detectron2's EventStorage: metrics.json and TensorBoard have them then."""

from __future__ import annotations

import logging

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

from tr_det.core.errors import check
from tr_det.core.methods.telemetry import Telemetry


class EventTelemetry(Telemetry):
    """Records what every ``period``-th iteration's update did, with any optimizer.

    Every loop of Detectron2's steps its optimizer within an EventStorage, so stock tools record the
    curves too.

    Args:
        period: iterations between two records, >= 1; a record synchronises with the device.

    Raises:
        ConfigError: period is less than 1.
    """

    def __init__(self, period: int) -> None:
        check("SOLVER.TR.LOG_PERIOD", period, period >= 1, "at least 1")
        super().__init__(self._is_due, self._put)
        self.period = period

    def _is_due(self, step: int) -> bool:
        storage = _storage()
        return storage is not None and (storage.iter + 1) % self.period == 0

    def _put(self, step: int, scalars: dict[str, float]) -> None:
        storage = _storage()
        assert storage is not None
        for name, value in scalars.items():
            storage.put_scalar(name, value, smoothing_hint=False)
        shown = {"rate": "TR", "talr": "TALR"}  # the others by their own names
        words = [
            f"{shown.get(key, key)} {scalars[f'tr/{key}']:.2e}"
            for key in ("rate", "running", "target", "talr", "oscillating", "frozen")
            if f"tr/{key}" in scalars and (key != "frozen" or scalars["tr/frozen"])
        ]
        if words and comm.is_main_process():
            logging.getLogger(__name__).info("%s", "  ".join(words))


def _storage() -> EventStorage | None:
    try:
        return get_event_storage()
    except AssertionError:  # outside a training loop
        return None
