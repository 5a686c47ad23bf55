"""Convolution and linear layers with quantized weights and inputs (Lee et al., ICCV 2025).

They are ``nn.Conv2d`` and ``nn.Linear`` with added children. Parameter names and paths stay, so
full-precision checkpoints load by name. The Parameter is always the latent weight.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tr_det.core.nn.config import QuantConfig
from tr_det.core.nn.output_scale import OutputScale
from tr_det.core.nn.recompute import recomputed_input
from tr_det.core.nn.shared_weights import computed_once
from tr_det.core.ops.backends import is_traced
from tr_det.core.quantizers import Calibrated, Quantizer
from tr_det.core.quantizers.pool import Pool, alone

LATENT = "_is_latent_weight"
"""Attribute that marks Parameters as latent weights of quantized layers."""


def is_latent_weight(parameter: Tensor) -> bool:
    """Return whether a Parameter is the latent weight of a quantized layer."""
    return getattr(parameter, LATENT, False)


def _state(module: nn.Module) -> list[Tensor]:
    """Return parameters and buffers; ``parameters()`` takes several times as long."""
    members = (m for part in module.modules() for m in (part._parameters, part._buffers))
    return [tensor for member in members for tensor in member.values() if tensor is not None]


class _QuantLayer(nn.Module):
    """What the quantized layers share; a mixin that comes before the torch layer.

    Args:
        *args: of the torch layer.
        weight_quantizer: quantizer of the weight, or None for full precision.
        input_quantizer: quantizer of the input, or None for full precision.
        output_scale: learnable scale on the output, or None.
        **kwargs: of the torch layer.

    Attributes:
        recompute_input: quantize the input again in the backward pass instead of storing it.
        made_with: the config that `quantize_model` was given; None if the layer was built directly.
    """

    weight: Tensor
    bias: Any  # Tensor or None; torch's own layers disagree on the declaration
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    output_scale: OutputScale | None
    recompute_input = False
    made_with: QuantConfig | None = None
    _bias_shape: tuple[int, ...] = (-1,)  # broadcasts to the output

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

    def set_parts(
        self,
        weight_quantizer: Quantizer | None,
        input_quantizer: Quantizer | None,
        output_scale: OutputScale | None,
    ) -> None:
        """Set the children; None leaves that part in full precision."""
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer
        self.output_scale = output_scale
        self._mark_weight()

    def _mark_weight(self) -> None:
        """Mark the weight for optimizers; see `is_latent_weight`."""
        if self.weight_quantizer is not None:
            setattr(self.weight, LATENT, True)

    # The methods below may replace the weight by another Parameter.

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

    def before_forward(self, look: Callable[[Tensor], None]) -> RemovableHandle:
        """Call ``look(input)`` before each forward, also of one that is called by keyword."""

        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            look(args[0] if args else kwargs["input"])

        return self.register_forward_pre_hook(hook, with_kwargs=True)

    def parts(self) -> list[Calibrated]:
        """Return the children that are calibrated with data."""
        children = (self.weight_quantizer, self.input_quantizer, self.output_scale)
        return [child for child in children if child is not None]

    def quantized_weight(self) -> Tensor:
        """Return the fake-quantized weight, with gradients to the latent weight.

        Inside `quantized_weights_once` all calls return the same tensor.
        """
        quantizer = self.weight_quantizer
        if quantizer is None:
            return self.weight
        return computed_once(
            self, lambda: [self.weight, *_state(quantizer)], lambda: quantizer(self.weight)
        )

    @torch.no_grad()
    def calibrate(self, x: Tensor, pool: Pool = alone) -> None:
        """Calibrate the children that are not: weight quantizer, input quantizer, output scale.

        Args:
            x: the layer's input; an empty one calibrates the weight quantizer only.
            pool: combines statistics over processes.
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
            if not self.output_scale.is_calibrated and x.numel():
                self.output_scale.require_calibrated()
            out = self.output_scale.applied_to(lambda w: self._function(x_q, w, None), weight)
        if self.bias is not None:
            out += self.bias.view(self._bias_shape).to(out.dtype)  # narrower under autocast
        return out

    def _saving(self, x: Tensor, x_q: Tensor) -> AbstractContextManager[Any]:
        """Return the context that decides what autograd stores of the quantized input."""
        quantizer = self.input_quantizer
        if not self.recompute_input or quantizer is None or is_traced():
            return nullcontext()
        return recomputed_input(x, x_q, quantizer.forward)


class QuantConv2d(_QuantLayer, nn.Conv2d):
    """Drop-in ``nn.Conv2d`` that quantizes its input and its weight; arguments: `_QuantLayer`."""

    _bias_shape = (-1, 1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve; input (N, C, H, W), floating point."""
        return self._quantized(input)

    def _function(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = self._conv_forward(x, weight, bias)
        return out


class QuantLinear(_QuantLayer, nn.Linear):
    """Drop-in ``nn.Linear`` that quantizes its input and its weight; arguments: `_QuantLayer`."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply; input (..., in_features), floating point."""
        return self._quantized(input)

    def _function(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, weight, bias)
