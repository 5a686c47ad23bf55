"""The base of modules whose numbers must be set from data before use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Calibrated(nn.Module):
    """A module whose parameters and buffers are NaN until data or a checkpoint has set them.

    So copies, averages and checkpoints need no extra flag. The answer is cached: asking the device
    in every forward would wait for it.

    Attributes:
        label: name for messages, e.g. ``backbone.res2.0.conv1.input_quantizer``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.label = type(self).__name__
        self._is_set = False

    def own_tensors(self) -> list[Tensor]:
        """Return the parameters and buffers that are set from data."""
        return [t for t in (*self._parameters.values(), *self._buffers.values()) if t is not None]

    @property
    def is_calibrated(self) -> bool:
        """Whether every number has been set from data, loaded or copied."""
        if not self._is_set:
            self._is_set = self._has_no_nan()
        return self._is_set

    def _has_no_nan(self) -> bool:
        return not any(t.is_meta or bool(t.isnan().any()) for t in self.own_tensors())

    def require_calibrated(self) -> None:
        """Raise RuntimeError unless every number has been set."""
        if not self.is_calibrated:
            raise RuntimeError(
                f"{self.label}: no scale yet; calibrate the model (tr_det.core.set_scales, or "
                "tr_det.core.attach before training) or load a quantized checkpoint"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        were_meta = any(t.is_meta for t in self.own_tensors())
        applied = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if were_meta:  # to_empty leaves memory uninitialised
            with torch.no_grad():
                for tensor in self.own_tensors():
                    tensor.fill_(torch.nan)
        return applied

    def problem_of(self, state_dict: dict[str, Any], prefix: str) -> str:
        """Return why a state dict is not for this module, or an empty string."""
        if f"{prefix}initialized" not in state_dict:
            return ""
        return (
            "an older version of tr_det wrote this checkpoint; finish the run with that version, "
            "or start from a full-precision checkpoint"
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        problem = self.problem_of(state_dict, prefix)
        if problem:
            if not any(problem in message for message in error_msgs):  # once is enough
                error_msgs.append(f"{prefix[:-1]}: {problem}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._is_set = self._has_no_nan()  # now: a compiled forward could not
