"""Helpers for choosing and launching kernels."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import Tensor


@cache
def has_triton() -> bool:
    """Return whether Triton is installed; it comes with torch on Linux."""
    return importlib.util.find_spec("triton") is not None


def is_traced() -> bool:
    """Return whether torch operations are recorded or replaced, where a kernel would be missed.

    That is by a compiler, a tracer (TorchScript, ONNX) or a dispatch mode (``make_fx``, counters).
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def send(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a vector on a device, without synchronising with it."""
    vector = torch.tensor(numbers, dtype=dtype)
    pinned = vector.pin_memory() if device.type == "cuda" else vector
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
