"""Convolution and linear layers with quantized weights and inputs (Lee et al., ICCV 2025).

They are ``nn.Conv2d`` and ``nn.Linear`` with children added: parameter names and paths stay, so
full-precision checkpoints load by name. The Parameter is always the latent weight.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tr_det.core.nn.once import once
from tr_det.core.nn.recompute import recomputed_input
from tr_det.core.ops import scale_output, tie_scale
from tr_det.core.ops.backends import is_watched
from tr_det.core.quantizers import Calibrated, Quantizer
from tr_det.core.quantizers.pool import Pool, alone


class OutputScale(Calibrated):
    """Learnable scalar on a layer's output, for layers that no trainable norm follows.

    From EWGS (Lee et al., CVPR 2021). Its first value is ``mean|f(x, w)| / mean|f(x_q, w_q)|``, f
    without bias.

    Deviations from EWGS: the bias is added after scaling, so that a pre-trained bias keeps its
    meaning; the scale is used as it is instead of by its absolute value, whose gradient vanishes
    at zero.

    Attributes:
        scale: 0-d float32 parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((), torch.nan))

    @torch.no_grad()
    def calibrate(self, full: Tensor, quantized: Tensor, pool: Pool = alone) -> None:
        """Set the scale from a layer's full-precision and quantized outputs, without bias.

        Outputs without elements leave it unset.
        """
        sums = torch.stack(
            (
                full.abs().sum(dtype=torch.float64),
                quantized.abs().sum(dtype=torch.float64),
                full.new_tensor(full.numel(), dtype=torch.float64),
            )
        )
        total, ours, count = pool(sums, "sum").unbind()
        if count == 0:
            return
        ratio = total / ours
        self.scale.copy_(torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0))

    def forward(self, y: Tensor) -> Tensor:
        """Scale y, any shape."""
        return y * self.scale


LATENT = "_is_latent_weight"
"""Attribute of the Parameters that are latent weights of quantized layers."""


def is_latent_weight(parameter: Tensor) -> bool:
    """Return whether a Parameter is the latent weight of a quantized layer."""
    return getattr(parameter, LATENT, False)


def _scaled(
    output_scale: OutputScale, weight: Tensor, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return ``function(weight) * scale``; function is linear, its output nobody else's."""
    if is_watched():
        out: Tensor = output_scale(function(weight))
        return out
    scale = output_scale.scale
    tied = once(output_scale, lambda: [weight, scale], lambda: tie_scale(weight, scale))
    return scale_output(function(tied), scale)


def _state(module: nn.Module) -> list[Tensor]:
    """Return parameters and buffers; ``parameters()`` takes several times as long."""
    members = (m for part in module.modules() for m in (part._parameters, part._buffers))
    return [tensor for member in members for tensor in member.values() if tensor is not None]


class _QuantLayer(nn.Module):
    """What the quantized layers share; mixed in before the torch layer.

    Attributes:
        recompute_input: quantize the input once more in the backward pass instead of keeping it.
    """

    weight: Tensor
    bias: Any  # Tensor or None; torch's own layers disagree on the declaration
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    output_scale: OutputScale | None
    recompute_input = False

    def set_parts(
        self,
        weight_quantizer: Quantizer | None,
        input_quantizer: Quantizer | None,
        output_scale: OutputScale | None,
    ) -> None:
        """Add the children; None leaves that part in full precision."""
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer
        self.output_scale = output_scale
        self._mark_weight()

    def _mark_weight(self) -> None:
        """Let optimizers tell a latent weight from other parameters; see `is_latent_weight`."""
        if self.weight_quantizer is not None:
            setattr(self.weight, LATENT, True)

    # What may put another Parameter in the weight's place.

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark_weight()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        applied = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._mark_weight()
        return applied

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._mark_weight()

    def parts(self) -> list[Calibrated]:
        """Return the children that data must set."""
        children = (self.weight_quantizer, self.input_quantizer, self.output_scale)
        return [child for child in children if child is not None]

    def quantized_weight(self) -> Tensor:
        """Return the fake-quantized weight, with gradients to the latent weight.

        Inside `quantized_weights_once` all calls return the same tensor.
        """
        quantizer = self.weight_quantizer
        if quantizer is None:
            return self.weight
        return once(self, lambda: [self.weight, *_state(quantizer)], lambda: quantizer(self.weight))

    @torch.no_grad()
    def calibrate(self, x: Tensor, pool: Pool = alone) -> None:
        """Set what is unset: the weight's quantizer, the input's and the output scale.

        Args:
            x: the layer's input; without elements it sets the weight's quantizer only.
            pool: over processes.
        """
        if self.weight_quantizer is not None and not self.weight_quantizer.is_calibrated:
            self.weight_quantizer.calibrate(self.weight)
        if self.input_quantizer is not None and not self.input_quantizer.is_calibrated:
            self.input_quantizer.calibrate(x, pool)
        if self.output_scale is not None and not self.output_scale.is_calibrated:
            x_q = x if self.input_quantizer is None else self.input_quantizer(x)
            full = self._function(x, self.weight, None)
            quantized = self._function(x_q, self.quantized_weight(), None)
            self.output_scale.calibrate(full, quantized, pool)

    def _function(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the layer, linear in x and in the weight."""
        raise NotImplementedError

    def _quantized(self, x: Tensor) -> Tensor:
        """Apply the layer to x and weight after quantization."""
        weight = self.quantized_weight()
        x_q = x if self.input_quantizer is None else self.input_quantizer(x)
        with self._saving(x, x_q):
            if self.output_scale is None:
                return self._function(x_q, weight, self.bias)
            if x.numel():
                self.output_scale.require_calibrated()
            out = _scaled(self.output_scale, weight, lambda tied: self._function(x_q, tied, None))
        if self.bias is not None:
            out += self._broadcast_bias(self.bias).to(out.dtype)  # narrower under autocast
        return out

    def _saving(self, x: Tensor, x_q: Tensor) -> AbstractContextManager[Any]:
        """Return the context that decides what autograd keeps of the quantized input."""
        quantizer = self.input_quantizer
        if not self.recompute_input or quantizer is None or torch.compiler.is_compiling():
            return nullcontext()
        return recomputed_input(x, x_q, quantizer.forward)

    def _broadcast_bias(self, bias: Tensor) -> Tensor:
        """Return the bias in a shape that adds to the output."""
        return bias


class QuantConv2d(_QuantLayer, nn.Conv2d):
    """Drop-in ``nn.Conv2d`` that quantizes its input and its weight.

    Args:
        *args: as for ``nn.Conv2d``.
        weight_quantizer: quantizer of the weight, or None for full precision.
        input_quantizer: quantizer of the input, or None for full precision.
        output_scale: learnable scale on the output, or None.
        **kwargs: as for ``nn.Conv2d``.
    """

    def __init__(
        self,
        *args: Any,
        weight_quantizer: Quantizer | None = None,
        input_quantizer: Quantizer | None = None,
        output_scale: OutputScale | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.set_parts(weight_quantizer, input_quantizer, output_scale)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve; input (N, C, H, W), floating point."""
        return self._quantized(input)

    def _function(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = self._conv_forward(x, weight, bias)
        return out

    def _broadcast_bias(self, bias: Tensor) -> Tensor:
        return bias.view(-1, 1, 1)


class QuantLinear(_QuantLayer, nn.Linear):
    """Drop-in ``nn.Linear`` that quantizes its input and weight; arguments as `QuantConv2d`."""

    def __init__(
        self,
        *args: Any,
        weight_quantizer: Quantizer | None = None,
        input_quantizer: Quantizer | None = None,
        output_scale: OutputScale | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.set_parts(weight_quantizer, input_quantizer, output_scale)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply; input (..., in_features), floating point."""
        return self._quantized(input)

    def _function(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, weight, bias)
