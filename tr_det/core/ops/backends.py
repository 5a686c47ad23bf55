"""Helpers for choosing and launching kernels."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

SWITCH = "TR_DET_KERNELS"
"""Variable of the environment; with 0 torch operations take the place of all kernels."""


def kernels_are_off() -> bool:
    """Return whether the user wants no kernels."""
    return os.environ.get(SWITCH, "1") == "0"


@cache
def has_triton() -> bool:
    """Return whether Triton is installed, as it is with torch on Linux, and may be used."""
    return not kernels_are_off() and importlib.util.find_spec("triton") is not None


def is_traced() -> bool:
    """Return whether torch operations are recorded or replaced, where a kernel would be missed.

    That is by a compiler, a tracer (TorchScript, ONNX) or a dispatch mode (``make_fx``, counters).
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def is_torchscript() -> bool:
    """Return whether ``torch.jit.trace`` records, which stores operations without gradients."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


class _NoContext:
    """Stands for the context of an autograd function whose gradient nobody asks for."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Save nothing."""

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Mark nothing."""


def applied(function: type[Function], *arguments: Any) -> Tensor:
    """Return what an autograd function returns.

    TorchScript cannot save Python functions: it gets the torch operations of the forward instead,
    so that its files run without this package. Registered operators would be saved, but not run
    without it, and every call would take half as long again on small tensors.

    Args:
        function: one whose forward consists of torch operations where `is_traced`.
        *arguments: of its forward.
    """
    if is_torchscript():
        with torch.no_grad():
            found: Tensor = function.forward(_NoContext(), *arguments)
        return found
    out: Tensor = function.apply(*arguments)
    return out


def send(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers, or rows of them, as a tensor on a device, without synchronising with it."""
    tensor = torch.tensor(numbers, dtype=dtype)
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current one, on whose stream kernels are launched."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def channels_of(x: Tensor, axis: int | None) -> tuple[int, int]:
    """Return the channels of a dense tensor and the elements of one channel in a row in memory.

    So the channel of the i-th element in memory is ``i // in_a_row % channels``.
    """
    if axis is None or x.shape[axis] <= 1:
        return 1, max(x.numel(), 1)
    return x.shape[axis], x.stride(axis)
