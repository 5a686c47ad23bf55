"""The base of quantizers with uniform steps: one scale and perhaps a shift.

They share kernels (`tr_det.core.ops.affine`) and a choice of straight-through estimators. A
subclass defines its `Affine` and how its scale is set. Common to all, and not in the papers:

  * a scale is at least ``SCALE_FLOOR`` where it divides; its gradient passes there;
  * at the bounds themselves the gradient passes;
  * scales per channel are an option for weights;
  * parameters have the learning rate and decay of all quantizer parameters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tr_det.core.errors import check, check_among, is_number
from tr_det.core.ops import (
    SCALE_FLOOR,
    Affine,
    affine_codes,
    affine_quantize,
    affine_recode_,
    affine_values,
)
from tr_det.core.quantizers.base import Quantizer
from tr_det.core.quantizers.spec import Grid, Rounding, Spec


class AffineQuantizer(Quantizer):
    """A quantizer on a uniform grid.

    Args:
        spec: bits, sign, role and channels.
        estimator: gradient of rounding and clipping: ``"clip"`` passes it where x is in the
            range before rounding, ``"round"`` where the code is in the range (half a step wider
            at both ends), ``"ewgs"`` as clip, weighed by the rounding error (EWGS), ``"identity"``
            everywhere.
        ewgs_factor: delta of EWGS, >= 0, where the range has length 1, as in the paper; None: 1e-3
            for ``"ewgs"``. Other estimators have none.
        **options: of `Quantizer`.

    Attributes:
        affine: the grid.
        is_linear: whether codes are affine in x, not only in `transformed` x.
    """

    estimators: ClassVar[tuple[str, ...]] = ("clip", "round", "ewgs", "identity")
    estimator: ClassVar[str] = "clip"
    """The method's default."""
    is_linear: bool = True

    def __init__(
        self,
        spec: Spec,
        *,
        estimator: str | None = None,
        ewgs_factor: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(spec, **options)
        chosen = estimator or self.estimator
        check_among("estimator", chosen, self.estimators)
        if ewgs_factor is None:
            ewgs_factor = 1e-3 if chosen == "ewgs" else 0.0
        else:
            check("ewgs_factor", ewgs_factor, chosen == "ewgs", "left out unless estimator is ewgs")
        fits = is_number(ewgs_factor) and ewgs_factor >= 0
        check("ewgs_factor", ewgs_factor, fits, "a number, not negative")
        self.affine = replace(
            self.make_affine(),
            axis=self.spec.axis if self.per_channel else None,
            estimator=chosen,  # type: ignore[arg-type]  # checked above
            delta=ewgs_factor / (2**spec.bits - 1),
        )
        self.low, self.high = self.affine.low, self.affine.high

    def make_affine(self) -> Affine:
        """Return the grid; estimator and axis are filled in."""
        raise NotImplementedError

    def scale_and_shift(self) -> tuple[Tensor, Tensor | None]:
        """Return the scale and the shift of `Affine`, differentiable in the parameters."""
        return self.scale, None  # type: ignore[return-value]

    def transformed(self, x: Tensor) -> Tensor:
        """Return the function of x that is rounded, in its shape; x itself by default."""
        return x

    def quantize(self, x: Tensor) -> Tensor:
        """Return the level of each element."""
        scale, shift = self.scale_and_shift()
        return affine_quantize(self.transformed(x), scale, shift, self.affine).to(x.dtype)

    @torch.no_grad()
    def discretise(self, x: Tensor) -> Tensor:
        """Return integer codes of x."""
        scale, shift = self.scale_and_shift()
        return affine_codes(self.transformed(x), scale, shift, self.affine)

    def values(self, codes: Tensor) -> Tensor:
        """Return the level of each code."""
        scale, shift = self.scale_and_shift()
        return affine_values(codes, scale, shift, self.affine)

    @torch.no_grad()
    def rewrite_(self, x: Tensor, codes: Tensor) -> Tensor:
        """Overwrite codes in one pass; return how many changed."""
        scale, shift = self.scale_and_shift()
        return affine_recode_(self.transformed(x), scale, shift, self.affine, codes)

    def features_per_scale(self, x: Tensor) -> int:
        """Return how many weights, or features of one sample, share a scale; LSQ's N."""
        if self.spec.role == "input":
            return max(x.numel() // max(x.shape[0], 1), 1) if x.ndim else 1
        return max(x.numel() // (int(self.spec.channels or 1) if self.per_channel else 1), 1)

    def kernel(self) -> tuple[Affine, Tensor, Tensor | None] | None:
        """Return the grid, scale and shift; None where codes are not affine in x."""
        return (self.affine, *self.scale_and_shift()) if self.is_linear else None

    @torch.no_grad()
    def grid(self) -> Grid:
        """Return the levels."""
        a, rounding = self.affine, self._thresholds()
        step = rounding.step if a.unit is None else torch.full_like(rounding.step, a.unit)
        halves = 1 if a.add == int(a.add) else 2  # integers in units of half steps
        mul, add = halves * a.mul, int(halves * a.add)
        offset = self.scale_and_shift()[1] if a.offset else None
        return Grid(a.low, a.high, mul, add, step / halves, offset)

    def rounding(self) -> Rounding | None:
        """Return the thresholds; None where they are not affine in the code."""
        return self._thresholds() if self.is_linear else None

    @torch.no_grad()
    def _thresholds(self) -> Rounding:
        a, (scale, shift) = self.affine, self.scale_and_shift()
        step = scale.detach().clamp_min(SCALE_FLOOR) / a.divisor
        if a.lead:
            shift = a.lead * step if shift is None else shift + a.lead * step
        return Rounding(step, shift, a.base, "sign" if a.sign else "even")

    @torch.no_grad()
    def normalized(self, x: Tensor) -> Tensor:
        """Return ``base + (x - shift) / step``, clipped to the codes; the binary grid's to +-1."""
        step, shift, base, tie = self._rounding_for(x)
        wide = self.transformed(x).float()
        units = (wide if shift is None else wide - shift) / step
        if tie == "sign":
            return units.clamp(-1.0, 1.0)
        return (units + base if base else units).clamp(self.affine.low, self.affine.high)

    @torch.no_grad()
    def centres(self, codes: Tensor) -> Tensor:
        """Return the middle of each code's interval; +-step for signs."""
        step, shift, base, tie = self._rounding_for(codes)
        units = codes.float() - base
        units = torch.where(units < 0, -1.0, 1.0) if tie == "sign" else units
        return units * step if shift is None else units * step + shift

    def _rounding_for(self, x: Tensor) -> Rounding:
        """Return the thresholds with step and shift in a shape that broadcasts to x's."""
        step, shift, base, tie = self._thresholds()
        shift = None if shift is None else self.spread(shift, x)
        return Rounding(self.spread(step, x), shift, base, tie)

    def transition_points(self) -> Tensor:
        """Return the midpoints between codes; 0 on the binary grid."""
        points = super().transition_points()
        return torch.zeros_like(points) if self.affine.sign else points
