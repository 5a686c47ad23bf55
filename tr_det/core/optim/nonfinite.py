"""The check for NaN and infinite gradients before a step.

One such value in one layer would spread through that layer's weights, codes and running TR, and in
the next forward pass through the model. TR-scheduled optimizers check all gradients first:

- ``"refuse"`` raises FloatingPointError. On a GPU the result is fetched without waiting for it, so
  the error comes with the next step or when the state is about to be saved; the weights are lost by
  then, but no checkpoint of them is written.
- ``"skip"`` counts the step and goes on, as a GradScaler does: weights, momentum, controllers and
  schedule stay. On a GPU this waits for the gradients in every step.

The cost is one read of the gradients. Optimizers without quantized weights check nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from tr_det.core.ops.backends import on_device_of
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import NAME, QUANTIZER
from tr_det.core.optim.weight_update import is_on_host


class GradientGuard:
    """Decides whether a step may be made.

    Attributes:
        skipped: number of steps left out.

    Args:
        policy: ``"refuse"`` or ``"skip"``.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.skipped = 0
        self._pending: Callable[[], bool] | None = None

    def admits(self, groups: list[Group]) -> bool:
        """Return whether the gradients of all groups are finite.

        Raises:
            FloatingPointError: if they are not and the policy is to refuse.
        """
        self.settle()
        grads = [_values(p.grad) for group in groups for p in group["params"] if p.grad is not None]
        finite = torch.isfinite(_summary([grad for grad in grads if grad.numel()]))
        if self.policy == "refuse" and _answers_later(finite):
            self._pending = _fetch(finite)
            return True
        if bool(finite):
            return True
        where = _first_bad(groups)
        if where is None:
            return True
        if self.policy == "refuse":
            raise FloatingPointError(
                f"{where} has NaN or inf; nothing was updated (tr_nonfinite='skip' would go on)"
            )
        self.skipped += 1
        logging.getLogger(__name__).warning(
            "%s has NaN or inf: step skipped (%d so far)", where, self.skipped
        )
        return False

    def settle(self) -> None:
        """Read the result of the last check, if that has not been done.

        Raises:
            FloatingPointError: the last step was made with NaN or inf.
        """
        if self._pending is not None and not self._pending():
            raise FloatingPointError(
                "a gradient of the previous step had NaN or inf, the weights have it now: resume "
                "from the last checkpoint (tr_nonfinite='skip' would leave such steps out)"
            )
        self._pending = None

    def forget(self) -> None:
        """Drop the result of the last check: other weights have been loaded."""
        self._pending = None

    def __getstate__(self) -> dict[str, object]:
        """Return what is copied; a result that has not arrived is not."""
        return {**self.__dict__, "_pending": None}


def _summary(grads: list[Tensor]) -> Tensor:
    """Return a number that is finite where all gradients are, 0-d on their device."""
    if all(is_on_host(grad) for grad in grads):
        # A sum keeps NaN and inf, and is far quicker here than a norm.
        sums = [grad.sum(dtype=torch.promote_types(grad.dtype, torch.float32)) for grad in grads]
        return torch.stack(sums).sum() if sums else torch.zeros(())
    return torch.nn.utils.get_total_norm(grads, norm_type=float("inf"))  # all of them in one launch


def _answers_later(answer: Tensor) -> bool:
    """Return whether reading a value would wait for queued work."""
    return answer.is_cuda


def _fetch(answer: Tensor) -> Callable[[], bool]:
    """Start copying a flag to the host; calling the result waits for this copy alone."""
    with on_device_of(answer):
        copy = answer.to("cpu", non_blocking=True)  # into pinned memory
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()

    def result() -> bool:
        arrived.synchronize()
        return bool(copy)

    return result


def _values(grad: Tensor) -> Tensor:
    return grad._values() if grad.is_sparse else grad


def _first_bad(groups: list[Group]) -> str | None:
    """Name the first gradient that is not finite, quantized weights first.

    None if all are finite: the sum of large numbers may be infinite.
    """
    ordered = sorted(groups, key=lambda group: QUANTIZER not in group)
    for group in ordered:
        for index, parameter in enumerate(group["params"]):
            if parameter.grad is not None and not torch.isfinite(_values(parameter.grad)).all():
                name = repr(group[NAME]) if NAME in group else f"parameter {index} of a plain group"
                return f"the gradient of {name}"
    return None
