"""Signs of inputs, found by looking at a forward in full precision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tr_det.core.nn.layers import _QuantLayer
from tr_det.core.quantizers import Quantizer
from tr_det.core.quantizers.pool import over_processes
from tr_det.core.quantizers.sign import has_negatives, reach


@torch.no_grad()
def find_signs(
    layers: Sequence[_QuantLayer], wanted: Sequence[_QuantLayer], forward: Callable[[], Any]
) -> None:
    """Give the input quantizers of layers the sign of their data; none keeps what it has.

    Args:
        layers: those that have no scales, and run in full precision meanwhile.
        wanted: those whose signs are to be found.
        forward: runs the model on a batch; all processes must call this at the same point.

    Raises:
        ValueError: a quantizer has no grid of the sign that its data have.
    """
    reaches: dict[_QuantLayer, Tensor] = {}

    def look(layer: _QuantLayer, x: Tensor) -> None:
        seen = reach(x)
        reaches[layer] = torch.maximum(reaches[layer], seen) if layer in reaches else seen

    handles = [layer.before_forward(partial(look, layer)) for layer in wanted]
    try:
        with _in_full_precision(layers):
            forward()
    finally:
        torch.clear_autocast_cache()
        for handle in handles:
            handle.remove()
    device = next(iter(wanted)).weight.device
    nothing = torch.full((2,), -torch.inf, device=device)
    found = torch.stack([reaches.get(layer, nothing).to(device) for layer in wanted])
    signed = has_negatives(over_processes(found, "max")).tolist()
    for layer, is_signed in zip(wanted, signed, strict=True):
        if is_signed and layer.input_quantizer is not None:
            layer.input_quantizer.take_sign(signed=True)


def log_signs(layers: Sequence[_QuantLayer]) -> None:
    """Log what was found."""
    found = [layer.input_quantizer for layer in layers if layer.input_quantizer is not None]
    if found:
        signed = [quantizer.label.rpartition(".")[0] for quantizer in found if quantizer.signed]
        logging.getLogger(__name__).info(
            "Inputs that can be negative, found by looking: %d of %d layers%s",
            len(signed),
            len(found),
            f": {', '.join(signed)}" if signed else "",
        )


def take_saved_signs(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give quantizers whose signs are to be found those of a state dict.

    ``load_state_dict`` does so by itself. This is for checkpointers that compare shapes before.
    """
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            module.take_sign_of(module.saved_identity(state, f"{name}."))


@contextmanager
def _in_full_precision(layers: Sequence[_QuantLayer]) -> Iterator[None]:
    """Run layers without their quantizers and output scales."""
    with ExitStack() as stack:
        for layer in layers:
            parts = (layer.weight_quantizer, layer.input_quantizer, layer.output_scale)
            stack.callback(layer.set_parts, *parts)
            layer.set_parts(None, None, None)
        yield
