"""What every quantizer is, and the registry that finds one by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tr_det.core.ops import Grid

QUANTIZERS: dict[str, type[Quantizer]] = {}
"""Registry name -> quantizer class; filled by `register_quantizer`."""

_Q = TypeVar("_Q", bound="Quantizer")


class Quantizer(nn.Module):
    """Per-tensor quantizer with one scale.

    A quantizer is three pure steps (normalise, discretise, de-normalise) around one number, the
    scale. The scale is set from data once, at the first forward in training mode, because
    optimizers and checkpoints come between construction and first use in every trainer; afterwards
    it is a parameter like any other.

    Attributes:
        scale: 0-d float32 parameter, units of the input; trained only with ``learn_scale``.
        initialized: 0-d uint8 buffer, 1 once the scale is valid; saved, so that a loaded model is
            not calibrated anew.
        code_range: int16 buffer (smallest code, largest code); saved, so that a checkpoint of
            another bit-width is refused instead of being evaluated on the wrong grid.
        label: name for messages, e.g. ``backbone.res2.0.conv1.input_quantizer``.
    """

    initialized: Tensor
    code_range: Tensor

    def __init__(self, bits: int, signed: bool, learn_scale: bool = True) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.grid = Grid.of(bits, signed)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=learn_scale)
        self.register_buffer("initialized", torch.zeros((), dtype=torch.uint8))
        self.register_buffer(
            "code_range", torch.tensor([self.grid.alpha, self.grid.beta], dtype=torch.int16)
        )
        self.label = type(self).__name__
        # Python's copy of `initialized`: asking the buffer would synchronise with the device at
        # every forward.
        self._ready = False

    def codes(self, x: Tensor) -> Tensor:
        """Return integer codes of x: same shape, int8 (signed) or uint8; no side effect."""
        raise NotImplementedError

    def recode_(self, x: Tensor, codes: Tensor) -> Tensor:
        """Overwrite codes with those of x; return how many changed.

        Args:
            x: any shape, floating point.
            codes: earlier codes of the same shape, as `codes` returns them.

        Returns:
            0-d int64 on x's device.
        """
        new = self.codes(x)
        changed = torch.count_nonzero(new != codes)
        codes.copy_(new)
        return changed

    def levels(self) -> Tensor:
        """Return the real value of every code, ascending, float32, shape (number of codes,)."""
        raise NotImplementedError

    def gain(self) -> Tensor:
        """Return q(x) / x where neither rounding nor clipping changes x: 1 for most quantizers."""
        return torch.ones_like(self.scale)

    def normalized(self, x: Tensor) -> Tensor:
        """Return x as the discretiser sees it, clipped, in units of codes; float32, no gradient."""
        raise NotImplementedError

    def transition_points(self) -> Tensor:
        """Return where `normalized` values change their code, ascending, float32."""
        raise NotImplementedError

    def initial_scale(self, count: Tensor, total: Tensor, squares: Tensor) -> Tensor:
        """Return the initial scale from element count, sum and sum of squares (0-d float64)."""
        raise NotImplementedError

    @property
    def is_initialized(self) -> bool:
        """True once the scale has been set from data, loaded or copied."""
        if (
            not self._ready
        ):  # the buffer may have been set from outside, e.g. by an average of weights
            self._ready = bool(self.initialized.item())
        return self._ready

    @torch.no_grad()
    def initialize(self, x: Tensor, pooled: bool = True) -> None:
        """Set the scale from data; no data leave it unset.

        Args:
            x: any shape, floating point.
            pooled: under ``torch.distributed``, pool the statistics over all processes, so that
                every one of them ends with the same scale; all of them must call this at the same
                point, as they do in a training step. False for weights, which are the same
                everywhere.

        Raises:
            ValueError: if x has NaN or inf, or negative values on an unsigned grid.
        """
        if not torch.isfinite(x).all():
            raise ValueError(f"{self.label}: cannot set the scale from data with NaN or inf")
        if not self.signed and x.numel() and x.min() < 0:
            raise ValueError(
                f"{self.label}: the input has negative values (min {x.min().item():.4g}) but the "
                "grid is unsigned; set signed_input for this layer by a rule, or put a ReLU "
                "before it"
            )
        wide = x.detach().double()
        moments = torch.stack((wide.new_tensor(wide.numel()), wide.sum(), wide.square().sum()))
        if pooled and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(moments)
        if moments[0] == 0:  # e.g. a detector's second stage, in a batch without proposals
            return
        self.scale.copy_(self.initial_scale(*moments.unbind()))
        self.initialized.fill_(1)
        self._ready = True

    def require_scale(self, x: Tensor) -> None:
        """Initialise from x if that is still to be done and this is training; refuse in evaluation.

        Raises:
            RuntimeError: in evaluation mode with a scale that was never set.
        """
        if self.is_initialized:
            return
        if not self.training:
            raise RuntimeError(no_scale(self.label))
        self.initialize(x)

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
        saved = state_dict.get(prefix + "code_range")
        if saved is not None and saved.tolist() != self.code_range.tolist():
            error_msgs.append(
                f"{prefix[:-1]}: the checkpoint has codes {saved[0].item()}..{saved[1].item()}, "
                f"this model has {self.grid.alpha}..{self.grid.beta} ({self.bits} bits); "
                "use the bit-widths it was trained with"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._ready = bool(self.initialized.item())

    def extra_repr(self) -> str:
        """Show bits, sign and whether the scale is trained."""
        kind = "signed" if self.signed else "unsigned"
        return (
            f"{self.bits} bits, {kind}, {'learned' if self.scale.requires_grad else 'frozen'} scale"
        )


def register_quantizer(name: str) -> Callable[[type[_Q]], type[_Q]]:
    """Register a quantizer class under a name; a name can be taken once."""

    def add(cls: type[_Q]) -> type[_Q]:
        if name in QUANTIZERS:
            raise ValueError(
                f"quantizer {name!r} is registered already, as {QUANTIZERS[name].__name__}"
            )
        QUANTIZERS[name] = cls
        return cls

    return add


def build_quantizer(name: str, bits: int, signed: bool, **options: Any) -> Quantizer:
    """Build a quantizer by its registry name.

    Args:
        name: registry name, e.g. ``"fixed_grid"``.
        bits: width in bits, 1 to 8.
        signed: whether codes can be negative: True for weights, False for inputs after a ReLU.
        **options: the quantizer's own, e.g. ``learn_scale=False``.

    Raises:
        ValueError: unknown name (the message lists near ones) or bits out of range.
    """
    check_quantizer_name("quantizer", name)
    return QUANTIZERS[name](bits, signed, **options)


def check_quantizer_name(where: str, name: str) -> None:
    """Raise ValueError unless a quantizer of that name is registered; ``where`` names the key."""
    if name not in QUANTIZERS:
        near = difflib.get_close_matches(name, QUANTIZERS)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}={name!r}: must be one of {sorted(QUANTIZERS)}{hint}")


def no_scale(label: str) -> str:
    """Return the message for evaluating before a scale was set."""
    return (
        f"{label}: no scale yet; calibrate the model (one forward in training mode) or load a "
        "quantized checkpoint before evaluating"
    )
