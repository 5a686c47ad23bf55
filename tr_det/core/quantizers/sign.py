"""Whether a layer's input can be negative, told from data.

An input behind a ReLU, a softmax or a pooling of such is exactly non-negative; behind a linear
layer, a norm, GELU or SiLU it is not, and the first batch shows it. One negative value among
thousands is enough. Rounding, e.g. of an interpolation, can leave negative values of the order of
float32's resolution, so a value counts from `NOISE` of the largest magnitude on. What is smaller
an unsigned grid makes zero, as any grid of at most 8 bits does. Zeros alone are unsigned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tr_det.core.errors import ConfigError
from tr_det.core.quantizers.calibrated import Calibrated
from tr_det.core.quantizers.pool import Pool, alone_here
from tr_det.core.quantizers.spec import Spec

NOISE = 2.0**-20
"""Largest negative value that does not count, relative to the largest magnitude."""

_FOLLOW_THE_SIGN = ("spec", "signed", "low", "high", "code_dtype", "affine", "is_linear")


@torch.no_grad()
def reach(x: Tensor) -> Tensor:
    """Return (-minimum, maximum) of numbers, float32; -inf for both where there are none.

    The elementwise maximum over several inputs, or over processes, is the reach of all of them.
    """
    if not x.numel():
        return torch.full((2,), -torch.inf, device=x.device)
    least, most = x.detach().aminmax()
    return torch.stack((-least, most)).float()


def has_negatives(reaches: Tensor) -> Tensor:
    """Return whether there are negative values.

    Args:
        reaches: of `reach`, shape (..., 2).

    Returns:
        bool, shape (...).

    >>> has_negatives(torch.stack([reach(torch.tensor([-0.2, 6.0])), reach(torch.zeros(3))]))
    tensor([ True, False])
    """
    below, above = reaches.unbind(-1)
    return below > NOISE * torch.maximum(below, above)


def read_identity(state: Any) -> str:
    """Return the text of bytes in a tensor or an array; of damaged ones some that fits nothing."""
    return bytes(state.tolist()).decode(errors="replace").strip()


class OpenSign(Calibrated):
    """A quantizer whose sign may be left to be found, by data or in a checkpoint.

    Attributes:
        sign_options: the options that it was built with, where its sign is to be found; None where
            the sign is given.
        unused: parameters that the other sign had; an optimizer and DistributedDataParallel may
            hold them. They are zero, and not part of the state.
    """

    spec: Spec
    signed: bool

    def __init__(self) -> None:
        super().__init__()
        self.sign_options: dict[str, Any] | None = None
        self.unused: tuple[nn.Parameter, ...] = ()

    def identity(self) -> str:
        """Return the name and the code range, which a checkpoint must have as well."""
        raise NotImplementedError

    def follow_sign(self, options: Mapping[str, Any]) -> None:
        """Leave the sign to be found; ``options`` are those that this quantizer was built with."""
        self.sign_options = dict(options)

    @property
    def sign_is_open(self) -> bool:
        """Whether data or a checkpoint have still to show if the input can be negative."""
        return self.sign_options is not None and not self.is_calibrated

    def look_at_sign(self, x: Tensor, pool: Pool) -> None:
        """Take signed codes if the data need them.

        Raises:
            ValueError: they do, but unsigned codes are given, or there are no signed ones.
        """
        if self.signed:
            return
        extremes = reach(x)
        if self.sign_options is not None:
            if has_negatives(pool(extremes, "max")):
                self.take_sign(signed=True)
        elif has_negatives(extremes):
            raise ValueError(
                f"{self.label}: the input has negative values (min {-extremes[0]:.4g}) but the "
                "grid is unsigned; leave signed_input of this layer to be found, set it, or put a "
                "ReLU before it"
            )

    def take_sign(self, signed: bool) -> None:
        """Change the codes to signed or unsigned ones, and unset the numbers.

        Parameters that both have stay the same objects.

        Raises:
            ValueError: there are no such codes; or a parameter gets another shape, and several
                processes exchange its gradient.
        """
        if signed != self.signed:
            self._become(self._of_sign(signed))

    def take_sign_of(self, identity: str) -> None:
        """Take the sign of a saved quantizer, by its `identity`, unless the sign is given."""
        if self.sign_options is None or identity == self.identity():
            return
        try:
            twin = self._of_sign(not self.signed)
        except ValueError:  # there is no such grid: loading reports what differs
            return
        if twin.identity() == identity:
            self._become(twin)

    def saved_identity(self, state_dict: Mapping[str, Any], prefix: str) -> str:
        """Return the identity in a state dict; this quantizer's own if it has none."""
        state = state_dict.get(f"{prefix}_extra_state")
        return self.identity() if state is None else read_identity(state)

    def _of_sign(self, signed: bool) -> Any:
        """Return an unset quantizer of a sign, else as this one."""
        kind: Any = type(self)
        device = next((t.device for t in self.own_tensors()), torch.device("cpu"))
        try:
            return kind(self.spec._replace(signed=signed), **(self.sign_options or {})).to(device)
        except ConfigError as error:
            grid = "a signed" if signed else "an unsigned"
            raise ValueError(f"{self.label}: its input needs {grid} grid, but {error}") from None

    @torch.no_grad()
    def _become(self, twin: Any) -> None:
        """Take over what follows from the sign."""
        own, trained = self._parameters, all(p.requires_grad for p in self.parameters())
        for key, wanted in twin._parameters.items():
            present = own[key]
            if present is None:
                own[key] = None if wanted is None else wanted.requires_grad_(trained)
            elif wanted is None:
                own[key] = None
                self.unused = (*self.unused, present.zero_())  # type: ignore[arg-type]
            elif present.shape == wanted.shape:
                present.copy_(wanted)
            elif alone_here():
                present.data = wanted.data.to(present.dtype)
            else:
                raise ValueError(
                    f"{self.label}: data call for a grid of the other sign, which has another "
                    f"number of {key}; several processes cannot change that in training: set "
                    "signed_input for this layer by a rule"
                )
        for key, buffer in twin._buffers.items():
            if buffer is not None:
                self._buffers[key].copy_(buffer)  # type: ignore[union-attr]
        for key in _FOLLOW_THE_SIGN:
            if key in vars(twin):
                setattr(self, key, getattr(twin, key))
        self._is_set = False

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        applied = super()._apply(*args, **kwargs)
        for former in self.unused:  # where the others are now
            former.data = former.data.to(next(t.device for t in self.own_tensors()))
        return applied
