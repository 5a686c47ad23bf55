"""A moving average of the latent weights.

Paper: *Mean teachers are better role models*, Tarvainen and Valpola, NeurIPS 2017, after Polyak and
Juditsky, 1992:

    a_t = d a_{t-1} + (1 - d) w_t,  d = min(decay, (1 + t) / (10 + t))

over all floating-point parameters and buffers: latent weights, biases, norms with their running
statistics, scales. The average is quantized like any weights. It is evaluated and stored as a
checkpoint of its own; training continues from the latent weights.

The bound on d at the start is TensorFlow's; with it the average forgets the first weights. Memory:
4 bytes for each averaged number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tr_det.core.codes import Update
from tr_det.core.errors import check, is_number
from tr_det.core.methods.base import METHODS, Method, Run
from tr_det.core.quantizers import Calibrated


@METHODS.register
class WeightAverage(Method):
    """Averages parameters and buffers over updates.

    Args:
        decay: d, in [0, 1); the average is over about the last 1 / (1 - d) updates.
    """

    order = 2

    def __init__(self, *, decay: float = 0.999) -> None:
        check("decay", decay, is_number(decay) and 0 <= decay < 1, "in [0, 1)")
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def setup(self, run: Run) -> None:
        """Store the model; the average starts with its state after the first update."""
        self._model = run.model
        self._set_late = [
            f"{prefix}.{name}"
            for prefix, module in run.model.named_modules()
            if isinstance(module, Calibrated)
            for name, _ in (*module.named_parameters(), *module.named_buffers())
        ]

    @torch.no_grad()
    def after_update(self, step: int, updates: Mapping[str, Update]) -> None:
        """Update the average."""
        current = self._current()
        if not self.average:
            self.average = {name: tensor.clone() for name, tensor in current.items()}
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [self.average[name] for name in current]
        torch._foreach_lerp_(averages, list(current.values()), 1.0 - decay)
        for name in self._set_late:  # NaN until it is calibrated
            if name not in current:  # no number, or gone when the sign of an input was found
                continue
            average = self.average[name]
            average.copy_(torch.where(average.isnan(), current[name], average))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Replace the weights by the average; before the first update there is none."""
        kept = {name: tensor.clone() for name, tensor in self._current().items()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the average."""
        current = self._current()
        self.average = {
            name: value.to(current[name].device, copy=True) for name, value in state.items()
        }

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        current = self._current()
        for name, value in values.items():
            current[name].copy_(value)

    def _current(self) -> dict[str, Tensor]:
        """Return name -> floating-point parameter or buffer, each tensor once."""
        named = (*self._model.named_parameters(), *self._model.named_buffers())
        return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}
