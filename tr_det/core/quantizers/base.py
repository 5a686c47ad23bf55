"""The base class of all quantizers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tr_det.core.errors import check, is_whole
from tr_det.core.ops import FREE, Affine
from tr_det.core.quantizers.pool import Pool, alone
from tr_det.core.quantizers.sign import OpenSign
from tr_det.core.quantizers.spec import ROLES, Grid, Rounding, Spec

_IDENTITY_SIZE = 64


class Quantizer(OpenSign):
    """A map from real values to integer codes, and from codes to levels.

    A subclass defines `quantize`, `discretise`, `values`, `normalized`, `centres` and
    `calibrate_from`; the rest has defaults. Codes are consecutive integers that ascend with the
    values.

    Args:
        spec: bits, sign, role and channels.
        learn_scale: whether the quantizer's parameters get gradients; must be False for weights
            under TR scheduling.
        per_channel: one scale per channel of the weight instead of one per tensor.

    Attributes:
        bits: width in bits.
        signed: whether codes can be negative.
        low: smallest code.
        high: largest code; there are at most ``2 ** bits`` codes.
        code_dtype: int8, or uint8 for unsigned codes.
        roles: what it can quantize; some methods are for weights or for inputs only.
        adapts: whether `end_update` must be called after every update. Then training without
            `tr_det.core.attach` is refused.
        held: int8 buffer in the weight's shape: the code at which a weight is held, `FREE` where
            it is not; None until the first weight is held.
        soft: whether the forward in training gives other values than the levels, e.g. a sum of
            sigmoids; in evaluation there are levels only.
        seen: statistics of the forwards since the last update, 1-d, for `end_update`; the maximum
            over processes is taken. None where the quantizer observes nothing.

    Raises:
        ConfigError: bits, role or an option that the quantizer does not have.
    """

    roles: ClassVar[tuple[str, ...]] = ROLES
    adapts: bool = False
    soft: bool = False
    held: Tensor | None

    def __init__(self, spec: Spec, *, learn_scale: bool = True, per_channel: bool = False) -> None:
        super().__init__()
        name = type(self).__name__
        fits = is_whole(spec.bits) and 1 <= spec.bits <= 8
        check("bits", spec.bits, fits, "an integer from 1 to 8")
        check("role", spec.role, spec.role in self.roles, f"one of {list(self.roles)} for {name}")
        for key, value in (("learn_scale", learn_scale), ("per_channel", per_channel)):
            check(key, value, isinstance(value, bool), "True or False")
        fits = not per_channel or spec.channels is not None
        check("per_channel", per_channel, fits, "False for inputs, and where channels is None")
        self.spec, self.learn_scale, self.per_channel = spec, learn_scale, per_channel
        self.bits, self.signed, self.low, self.high = spec.bits, spec.signed, spec.low, spec.high
        self.code_dtype = torch.int8 if spec.signed else torch.uint8
        self.seen: Tensor | None = None
        self.attached = False
        self.register_buffer("held", None)

    # ---- the map ----

    @classmethod
    def needs_scale_after(cls, spec: Spec) -> bool:
        """Return whether a trainable norm or an output scale must follow the layer."""
        return False

    def quantize(self, x: Tensor) -> Tensor:
        """Return the level of each element, differentiable in x and the parameters; pure."""
        raise NotImplementedError

    def discretise(self, x: Tensor) -> Tensor:
        """Return the integer code of each element, `code_dtype`; no gradient, pure."""
        raise NotImplementedError

    def values(self, codes: Tensor) -> Tensor:
        """Return the level of each code, float32, differentiable in the parameters."""
        raise NotImplementedError

    def rewrite_(self, x: Tensor, codes: Tensor) -> Tensor:
        """Overwrite codes by those of x; return how many changed, 0-d integer on x's device."""
        new = self.discretise(x)
        changed = torch.count_nonzero(new != codes)
        codes.copy_(new)
        return changed

    def grid(self) -> Grid | None:
        """Return the levels where they are affine in the code, else None."""
        return None

    def rounding(self) -> Rounding | None:
        """Return the thresholds between codes where they are affine in the code, else None."""
        return None

    def kernel(self) -> tuple[Affine, Tensor, Tensor | None] | None:
        """Return the grid, scale and shift for the kernels, or None if they cannot be used."""
        return None

    def normalized(self, x: Tensor) -> Tensor:
        """Return x in units of codes, within their range; float32, no gradient."""
        raise NotImplementedError

    def transition_points(self) -> Tensor:
        """Return where `normalized` values change their code, ascending, float32."""
        codes = torch.arange(self.low, self.high, device=self._device())
        return codes + 0.5

    def levels(self) -> Tensor:
        """Return the level of every code, ascending, float32; (codes,) or (channels, codes)."""
        codes = torch.arange(self.low, self.high + 1, device=self._device())
        if self.per_channel:
            shape = [1] * (self.spec.axis + 1)
            shape[self.spec.axis] = int(self.spec.channels or 1)
            codes = codes.expand(*shape, -1)
        with torch.no_grad():
            found = self.values(codes)
        return found.reshape(-1, codes.shape[-1]) if self.per_channel else found

    def centres(self, codes: Tensor) -> Tensor:
        """Return the latent value that stands for each code, in units of x, float32; no gradient.

        That is the middle of the code's interval or, where levels are in units of x, the level.
        """
        raise NotImplementedError

    def gain(self) -> Tensor:
        """Return q(x) / x where neither rounding nor clipping changes x: 1 for most quantizers."""
        grid, rounding = self.grid(), self.rounding()
        if grid is None or rounding is None:
            return torch.ones((), device=self._device())
        steps = grid.mul if rounding.tie == "even" else 1
        return (grid.step * steps / rounding.step).detach()

    # ---- set from data, and changed in the course of a run ----

    def calibrate_from(self, x: Tensor, pool: Pool) -> None:
        """Set the parameters from data, without gradient; empty data leave them unset.

        Args:
            x: any shape, floating point, finite.
            pool: sums, maxima or samples over processes, where inputs differ between them.
        """
        raise NotImplementedError

    def observe(self, x: Tensor) -> None:
        """Update `seen` from an input in training; the same input twice changes nothing more."""

    def end_update(self, step: int, total: int, weight: Tensor | None = None) -> None:
        """Apply `seen` and refit levels after an update.

        Args:
            step: updates made.
            total: updates of the whole run.
            weight: the latent weight, for weight quantizers.
        """

    def anneal(self, step: int, total: int) -> None:
        """Set the position in the run, after each update and on resuming."""

    def param_options(self) -> dict[str, Any]:
        """Return options of the quantizer's parameter group that replace the common ones.

        ``lr_factor`` multiplies the group's learning rate; other keys are the optimizer's own.
        """
        return {}

    # ---- for callers ----

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize x (any shape); gradients to x and to the trained parameters.

        Raises:
            RuntimeError: no scale yet, or training an adapting quantizer without `attach`.
        """
        if not self._is_set and x.numel():
            self.require_calibrated()
        if self.adapts and self.training and torch.is_grad_enabled():
            if not self.attached:
                raise RuntimeError(
                    f"{self.label}: {type(self).__name__} follows every update; call "
                    "tr_det.core.attach([...], model, optimizer, total_steps) before training"
                )
            self.observe(x)
        out = self.quantize(x)
        if self.held is None:
            return out
        held = self.values(self.held.clamp_min(self.low))  # FREE is not a code
        return torch.where(self.held == FREE, out, held.to(out.dtype))

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Return integer codes of x: same shape, int8 (signed) or uint8; no side effect."""
        self.require_calibrated()
        found = self.discretise(x)
        if self.held is None:
            return found
        return torch.where(self.held == FREE, found, self.held.to(found.dtype))

    def recode_(self, x: Tensor, codes: Tensor) -> Tensor:
        """Overwrite codes by those of x; return how many changed, without the held ones.

        Args:
            x: any shape, floating point.
            codes: earlier codes of the same shape, as `codes` returns them.

        Returns:
            0-d integer on x's device.
        """
        if self.held is None:
            return self.rewrite_(x, codes)
        new = self.codes(x)
        changed = torch.count_nonzero((new != codes) & (self.held == FREE))
        codes.copy_(new)
        return changed

    @torch.no_grad()
    def hold(self, which: Tensor, codes: Tensor) -> None:
        """Hold weights at codes from now on, whatever their latent values become.

        Args:
            which: bool, the weight's shape.
            codes: integer, likewise; clipped to the quantizer's codes.

        Raises:
            ConfigError: 8-bit codes, which leave no value for `FREE`.
        """
        check("bits", self.bits, self.bits < 8, "at most 7 for weights that are held")
        codes = codes.clamp(self.low, self.high).to(torch.int8)
        if self.held is None:
            self.held = torch.full_like(codes, FREE)
        self.held.copy_(torch.where(which, codes, self.held))

    @torch.no_grad()
    def calibrate(self, x: Tensor, pool: Pool = alone) -> None:
        """Set the parameters from data; data without elements leave them unset.

        Args:
            x: any shape, floating point.
            pool: `over_processes` for inputs; all processes must then call this at the same point.

        Raises:
            ValueError: x has NaN or inf, or negative values for codes that are to be unsigned.
        """
        if not torch.isfinite(x).all():
            raise ValueError(f"{self.label}: cannot set the scale from data with NaN or inf")
        self.look_at_sign(x, pool)
        self.calibrate_from(x.detach(), pool)

    def own_tensors(self) -> list[Tensor]:
        """Return the parameters and buffers that are set from data: all but `held`."""
        buffers = [b for key, b in self._buffers.items() if key != "held" and b is not None]
        return [p for p in self._parameters.values() if p is not None] + buffers

    def moving_tensors(self) -> dict[str, Tensor]:
        """Return the trained parameters; for a quantizer that `adapts`, all of `own_tensors`."""
        named = {**self._parameters, **self._buffers}
        own = {key: t for key, t in named.items() if t is not None and key != "held"}
        return {key: t for key, t in own.items() if self.adapts or t.requires_grad}

    def new_parameter(self) -> nn.Parameter:
        """Return an unset parameter with one value per scale, float32."""
        return nn.Parameter(self.unset(), requires_grad=self.learn_scale)

    def unset(self, *shape: int) -> Tensor:
        """Return NaNs, float32: of the shape or, with a scale per channel, (channels, *shape)."""
        scales = (int(self.spec.channels or 1),) if self.per_channel else ()
        return torch.full((*scales, *shape), torch.nan)

    def spread(self, numbers: Tensor, x: Tensor) -> Tensor:
        """Return one number per scale in a shape that broadcasts to x's."""
        if not self.per_channel:
            return numbers
        return numbers.view([-1 if dim == self.spec.axis else 1 for dim in range(x.ndim)])

    def by_channel(self, x: Tensor) -> Tensor:
        """Return x as (scales, elements): one row, or one per channel."""
        if not self.per_channel:
            return x.reshape(1, -1)
        return x.movedim(self.spec.axis, 0).flatten(1)

    def from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return rows of `by_channel` in the shape and layout of ``like``, in their own dtype."""
        if self.per_channel:
            axis = self.spec.axis
            rows = rows.reshape(like.movedim(axis, 0).shape).movedim(0, axis)
        return torch.empty_like(like, dtype=rows.dtype).copy_(rows.reshape(like.shape))

    def _device(self) -> torch.device:
        return next((t.device for t in self.own_tensors()), torch.device("cpu"))

    # ---- checkpoints ----

    def identity(self) -> str:
        """Return the name and the code range, which a checkpoint must have as well."""
        name = type(self).__module__.rpartition(".")[2]
        return f"{name} with codes {self.low} to {self.high}"

    def get_extra_state(self) -> Tensor:
        """Return the identity as bytes, uint8: checkpointers want tensors of one shape."""
        text = self.identity().encode().ljust(_IDENTITY_SIZE)
        return torch.tensor(list(text), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Do nothing: the identity was compared before."""

    def problem_of(self, state_dict: dict[str, Any], prefix: str) -> str:
        """Return why a state dict is not for this quantizer, or an empty string."""
        own, saved = self.identity(), self.saved_identity(state_dict, prefix)
        if saved == own:
            return super().problem_of(state_dict, prefix)
        return (
            f"the checkpoint has {saved}, this model has {own}; use the quantizers and "
            "bit-widths that it was trained with"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.take_sign_of(self.saved_identity(state_dict, prefix))
        held = state_dict.get(f"{prefix}held")
        if held is None:
            self.held = None
        elif self.held is None:  # before loading, which copies into what is there
            self.held = torch.empty_like(held, device=self._device())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Show bits, sign and whether the scale is trained."""
        kind = "signed" if self.signed else "unsigned"
        scales = "per channel" if self.per_channel else "per tensor"
        learned = "learned" if self.learn_scale else "frozen"
        return f"{self.bits} bits, {kind}, {scales}, {learned} scale"
