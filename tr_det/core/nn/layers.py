"""Convolution and linear layers with quantized weights and inputs (Lee et al., ICCV 2025).

They are ``nn.Conv2d`` and ``nn.Linear`` with children added: parameter names and paths stay, so
full-precision checkpoints load by name. The Parameter is always the latent weight.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tr_det.core.nn.once import once
from tr_det.core.nn.recompute import recomputed_input
from tr_det.core.ops import scale_output, tie_scale
from tr_det.core.ops.backends import is_watched
from tr_det.core.quantizers import Quantizer
from tr_det.core.quantizers.base import no_scale


class OutputScale(nn.Module):
    """Learnable scalar on a layer's output, for layers that no trainable norm follows.

    From EWGS (Lee et al., CVPR 2021). Initialised at the first training forward to
    ``mean|f(x, w)| / mean|f(x_q, w_q)|``, f without bias.

    Deviations from EWGS: the bias is added after scaling, so that a pre-trained bias keeps its
    meaning; the scale is used as it is instead of by its absolute value, whose gradient vanishes
    at zero.
    """

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.uint8))
        self.label = type(self).__name__
        self._ready = False

    @torch.no_grad()
    def initialize(self, full: Tensor, quantized: Tensor) -> None:
        """Set the scale from a layer's full-precision and quantized outputs, without bias.

        Pooled over processes under ``torch.distributed``, like `Quantizer.initialize`. Empty
        outputs leave it unset.
        """
        sums = torch.stack(
            (
                full.abs().sum(dtype=torch.float64),
                quantized.abs().sum(dtype=torch.float64),
                full.new_tensor(full.numel(), dtype=torch.float64),
            )
        )
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        if sums[2] == 0:
            return
        ratio = sums[0] / sums[1]
        self.scale.copy_(torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0))
        self.initialized.fill_(1)
        self._ready = True

    @property
    def is_initialized(self) -> bool:
        """True once the scale has been set from data, loaded or copied."""
        if not self._ready:
            self._ready = bool(self.initialized.item())
        return self._ready

    def forward(self, y: Tensor) -> Tensor:
        """Scale y, any shape."""
        return y * self.scale

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = bool(self.initialized.item())


LinearFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(input, weight, bias) -> output, linear in input and in weight."""


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

    def attach(
        self,
        weight_quantizer: Quantizer | None,
        input_quantizer: Quantizer | None,
        output_scale: OutputScale | None,
    ) -> None:
        """Add the children; None leaves that part in full precision."""
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer
        self.output_scale = output_scale

    def quantized_weight(self) -> Tensor:
        """Return the fake-quantized weight, with gradients to the latent weight.

        Inside `quantized_weights_once` all calls return the same tensor.
        """
        if self.weight_quantizer is None:
            return self.weight
        if not self.weight_quantizer.is_initialized:
            self.weight_quantizer.initialize(
                self.weight, pooled=False
            )  # needs no data, so evaluation may do it as well
        quantizer = self.weight_quantizer
        return once(self, lambda: [self.weight, *_state(quantizer)], lambda: quantizer(self.weight))

    def _quantized(self, x: Tensor, function: LinearFunction) -> Tensor:
        """Apply a function, linear in input and in weight, to both after quantization."""
        weight = self.quantized_weight()
        x_q = x if self.input_quantizer is None else self.input_quantizer(x)
        if self.output_scale is not None and not self.output_scale.is_initialized:
            if not self.training:
                raise RuntimeError(no_scale(self.output_scale.label))
            with torch.no_grad():
                full, quantized = function(x, self.weight, None), function(x_q, weight, None)
                self.output_scale.initialize(full, quantized)
        with self._saving(x, x_q):
            if self.output_scale is None:
                return function(x_q, weight, self.bias)
            out = _scaled(self.output_scale, weight, lambda tied: function(x_q, tied, None))
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
        self.attach(weight_quantizer, input_quantizer, output_scale)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve; input (N, C, H, W), floating point."""
        return self._quantized(input, self._conv_forward)

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
        self.attach(weight_quantizer, input_quantizer, output_scale)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply; input (..., in_features), floating point."""
        return self._quantized(input, nn.functional.linear)
