"""One calibration: the scales of a whole model from one forward.

Layer by layer, on inputs that are quantized already (EWGS, Lee et al., CVPR 2021): a hook before
each layer sets what the layer still lacks. A layer that runs several times, such as a detector's
head, takes its first input. Under ``torch.distributed`` statistics are pooled, so every process
has the same scales; weights need no data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tr_det.core.nn.layers import _QuantLayer
from tr_det.core.quantizers import Calibrated, Quantizer
from tr_det.core.quantizers.pool import over_processes


def is_calibrated(model: nn.Module) -> bool:
    """Return whether every quantizer and output scale of a model has its numbers."""
    return all(m.is_calibrated for m in model.modules() if isinstance(m, Calibrated))


@torch.no_grad()
def set_scales(model: nn.Module, forward: Callable[[], Any]) -> None:
    """Set every scale that is unset; leave everything else as it was.

    Buffers (batch norm's statistics), numbers that modules keep, and random states are as before
    the call, so that training goes on as if the forward had not been.

    A layer that gets no data in this forward, such as a detector's second stage without proposals,
    is set by its first input with elements in training.

    Args:
        model: its mode decides how the forward runs; training mode, as in EWGS, is the usual one.
        forward: runs the model on a batch, e.g. ``lambda: model(images)``; all processes must call
            this at the same point.

    Raises:
        ValueError: data with NaN or inf, or negative values where the grid is unsigned.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _QuantLayer) and not all(p.is_calibrated for p in layer.parts())
    ]
    for layer in layers:
        if layer.weight_quantizer is not None and not layer.weight_quantizer.is_calibrated:
            layer.weight_quantizer.calibrate(layer.weight)
    waiting = [layer for layer in layers if not all(p.is_calibrated for p in layer.parts())]
    if not waiting:
        return
    handles = [_calibrate_at_next_input(layer) for layer in waiting]
    try:
        with undisturbed(model):
            forward()
    except BaseException:
        for handle in handles:
            handle.remove()
        raise
    # Torch 2.6 would use this forward's casts of weights again, which have no gradient.
    torch.clear_autocast_cache()
    for handle in handles:
        handle.remove()
    late = [layer for layer in waiting if not all(p.is_calibrated for p in layer.parts())]
    for layer in late:
        _calibrate_at_next_input(layer, only_in_training=True)
    if late:
        logging.getLogger(__name__).warning(
            "%d layers had no input to be calibrated with; their first one sets their scales: %s",
            len(late),
            ", ".join(sorted({part.label.rpartition(".")[0] for x in late for part in x.parts()})),
        )


def _calibrate_at_next_input(layer: _QuantLayer, only_in_training: bool = False) -> RemovableHandle:
    handle: RemovableHandle

    def calibrate(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _QuantLayer)
        if only_in_training and not layer.training:
            return
        if not all(part.is_calibrated for part in layer.parts()):
            layer.calibrate(args[0], over_processes)
        if all(part.is_calibrated for part in layer.parts()):
            handle.remove()

    handle = layer.register_forward_pre_hook(calibrate)
    return handle


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore what a forward in training changes: buffers, plain numbers, random states."""
    own = {id(b) for m in model.modules() if isinstance(m, Quantizer) for b in m.buffers()}
    buffers = [(b, b.clone()) for b in model.buffers() if id(b) not in own]
    modules = [module for module in model.modules() if not isinstance(module, Calibrated)]
    numbers = [_numbers(module) for module in modules]
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
            for module, values in zip(modules, numbers, strict=True):
                for key in _numbers(module):  # the forward may have made new ones
                    del vars(module)[key]
                vars(module).update(values)


def _numbers(module: nn.Module) -> dict[str, int | float]:
    """Return the plain numbers that a module keeps, such as a detector's loss normalizer."""
    return {key: value for key, value in vars(module).items() if isinstance(value, int | float)}
