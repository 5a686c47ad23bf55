"""Calibration of all scales of a model on one batch.

Where the config does not say whether inputs can be negative, a first forward in full precision
looks at them: at all inputs of a layer that runs several times, such as a detector's head, and in
all processes (`tr_det.core.nn.signs`). A second forward sets the scales.

Layers are calibrated one after the other, on inputs that are already quantized (EWGS, Lee et al.,
CVPR 2021): a hook before each layer sets its missing scales. A layer that runs several times uses
its first input. Under ``torch.distributed`` statistics are pooled, so every process has the same
scales.
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
from tr_det.core.nn.signs import find_signs, log_signs
from tr_det.core.quantizers import Calibrated, Quantizer
from tr_det.core.quantizers.pool import over_processes


def is_calibrated(model: nn.Module) -> bool:
    """Return whether all quantizers and output scales of a model or a layer are calibrated."""
    return all(m.is_calibrated for m in model.modules() if isinstance(m, Calibrated))


@torch.no_grad()
def set_scales(model: nn.Module, forward: Callable[[], Any]) -> None:
    """Set all missing scales and leave everything else as it was.

    Buffers (batch norm's statistics), plain numbers of modules and random states are restored, so
    that training continues as if this forward had not happened.

    A layer that gets no data in this forward, such as a detector's second stage without proposals,
    is calibrated by its first non-empty input in training.

    Args:
        model: runs in the mode that it has; training mode, as in EWGS, is the usual one.
        forward: runs the model on a batch, e.g. ``lambda: model(images)``; called twice where signs
            of inputs are to be found. All processes must call this at the same point.

    Raises:
        ValueError: data with NaN or inf, negative values where a grid is to be unsigned, or a grid
            that data call for and the quantizer does not have.
    """
    layers = [m for m in model.modules() if isinstance(m, _QuantLayer) and not is_calibrated(m)]
    for layer in layers:  # weights need no data
        if layer.weight_quantizer is not None and not layer.weight_quantizer.is_calibrated:
            layer.weight_quantizer.calibrate(layer.weight)
    waiting = [layer for layer in layers if not is_calibrated(layer)]
    if not waiting:
        return
    inputs = [(layer, layer.input_quantizer) for layer in waiting]
    open_signs = [layer for layer, q in inputs if q is not None and q.sign_is_open]
    if open_signs:
        with undisturbed(model):
            find_signs(layers, open_signs, forward)
    handles = [_calibrate_at_next_input(layer) for layer in waiting]
    try:
        with undisturbed(model):
            forward()
    finally:
        # Torch 2.6 would reuse this forward's casts of weights, which have no gradient.
        torch.clear_autocast_cache()
        for handle in handles:
            handle.remove()
    log_signs([layer for layer in open_signs if is_calibrated(layer)])
    late = [layer for layer in waiting if not is_calibrated(layer)]
    for layer in late:
        _calibrate_at_next_input(layer, only_in_training=True)
    if late:
        logging.getLogger(__name__).warning(
            "%d layers had no input in the calibrating forward; their first input in training "
            "calibrates them: %s",
            len(late),
            ", ".join(sorted({part.label.rpartition(".")[0] for x in late for part in x.parts()})),
        )


def _calibrate_at_next_input(layer: _QuantLayer, only_in_training: bool = False) -> RemovableHandle:
    def calibrate(x: Tensor) -> None:
        if layer.training or not only_in_training:
            layer.calibrate(x, over_processes)
            if is_calibrated(layer):
                handle.remove()

    handle = layer.before_forward(calibrate)
    return handle


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore afterwards what a forward in training changes: buffers, numbers, random states."""
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
                for key in _numbers(module):  # the forward may have added some
                    del vars(module)[key]
                vars(module).update(values)


def _numbers(module: nn.Module) -> dict[str, int | float]:
    """Return a module's attributes that are numbers, such as a detector's loss normalizer."""
    return {key: value for key, value in vars(module).items() if isinstance(value, int | float)}
