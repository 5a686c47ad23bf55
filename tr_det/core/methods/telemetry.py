"""The logged curves of a run, with the same names in every trainer and for every optimizer.

    tr/rate         share of the codes changed by updates of weights (Eq. 5 of Lee et al., ICCV
                    2025), at the scales before the update
    tr/by_scale     share of the codes changed by updates of scales and refits of levels
    tr/scale_drift  relative change of the quantizers' trained or refitted numbers
    tr/step_size    mean change of the quantized weights' levels (Eq. S3)
    tr/distance     mean distance of the weights to the nearest transition point, in codes
    tr/target, tr/running, tr/talr    R, K and U, with TR scheduling
    tr/factor       lambda, with TR scheduling
    tr/frozen       share of all weights that are held

All but the last two are means over layers; a layer's own are ``tr_layers/<layer>/rate`` and so on.
Methods add theirs, e.g. ``tr/oscillating``. Only logged updates are measured, with one transfer
from the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tr_det.core.codes import Update
from tr_det.core.methods.base import Method, Run
from tr_det.core.optim.scheduled import TransitionScheduled
from tr_det.core.weight_stats import distances, effective_step_size, held_share, scale_drift

LAYERS = "tr_layers/"
"""What the names of a layer's own curves begin with."""
_OF_UPDATES: dict[str, Callable[[Update], Tensor]] = {
    "rate": Update.rate,
    "by_scale": Update.rate_by_scale,
    "scale_drift": scale_drift,
    "step_size": effective_step_size,
}


class Telemetry(Method):
    """Writes the curves of the logged updates.

    Args:
        is_due: 0-based index of the next update -> whether it is logged.
        write: called with its index and name -> number, without NaN (an unknown target).
    """

    order = 3
    is_part_of_run = False

    def __init__(
        self, is_due: Callable[[int], bool], write: Callable[[int, dict[str, float]], None]
    ) -> None:
        self.is_due, self.write = is_due, write
        self._due = False

    def setup(self, run: Run) -> None:
        """Store the run."""
        self._run = run

    def reads(self, step: int) -> bool:
        """Return whether this update is logged."""
        self._due = self.is_due(step)
        return self._due

    def after_update(self, step: int, updates: Mapping[str, Update]) -> None:
        """Collect and write."""
        if not self._due:
            return
        weights = self._run.codes.weights()
        names = list(weights)
        optimizer, metrics = self._run.optimizer, None
        curves = self._curves(updates)
        if isinstance(optimizer, TransitionScheduled) and names:
            metrics = optimizer.transition_metrics()
            curves |= {"running": list(metrics.running), "talr": list(metrics.talr)}
        own = [method.scalars() for method in self._run.methods]
        extra = {name: value for scalars in own for name, value in scalars.items()}
        if weights:
            extra["tr/frozen"] = held_share(weights)
        values = [value.float() for curve in curves.values() for value in curve]
        values += [value.float() for value in extra.values()]
        numbers = iter(torch.stack(values).tolist() if values else [])  # the one transfer
        columns = {key: [next(numbers) for _ in names] for key in curves}
        scalars = dict(zip(extra, numbers, strict=True))
        if metrics is not None:
            columns["target"], scalars["tr/factor"] = metrics.target.tolist(), metrics.factor
        for key, column in columns.items():
            if names:
                scalars[f"tr/{key}"] = math.fsum(column) / len(column)
            for name, number in zip(names, column, strict=True):
                scalars[f"{LAYERS}{name.removesuffix('.weight')}/{key}"] = number
        self.write(step, {key: value for key, value in scalars.items() if math.isfinite(value)})

    def _curves(self, updates: Mapping[str, Update]) -> dict[str, list[Tensor]]:
        """Return curve -> values of the weights; 0 changes where an update left a weight alone."""
        curves: dict[str, list[Tensor]] = {key: [] for key in (*_OF_UPDATES, "distance")}
        for name, (weight, quantizer) in self._run.codes.weights().items():
            update = updates.get(name)
            zero = torch.zeros((), device=weight.device)
            for key, measure in _OF_UPDATES.items():
                curves[key].append(zero if update is None else measure(update))
            curves["distance"].append(distances(quantizer, weight).mean())
        return curves
