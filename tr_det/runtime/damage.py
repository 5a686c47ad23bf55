"""Checkpoints that no run has written: cut short, altered, or of something else."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

QUANTIZER_STATE = (".weight_quantizer.", ".input_quantizer.", ".output_scale.")
"""What a quantized layer adds to a state dict."""

_SCALES = (".scale", ".alpha", ".beta", ".half_length")  # what calibration never leaves at zero
_HELD = "weight_quantizer.held"  # codes of frozen weights, which a new model has no place for
_ZIP = b"PK\x03\x04"


def is_whole(path: str | Path) -> bool:
    """Return whether a file is a complete and unaltered checkpoint of torch's.

    Each part of it has a check sum, which torch itself does not compare.
    """
    try:
        state = os.stat(path)
    except OSError:
        return False
    return _is_whole(os.fspath(path), (state.st_ino, state.st_mtime_ns, state.st_size))


@cache  # starting a run asks several times, and the file may be large
def _is_whole(path: str, state: tuple[int, ...]) -> bool:
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except Exception:  # what a damaged table of contents raises depends on its bytes
        return False


def read_checkpoint(path: str | Path, mmap: bool = False) -> Any:
    """Return what a checkpoint of torch's holds: tensors and plain values.

    Args:
        path: the file.
        mmap: read tensors when they are used; their check sums are not compared.

    Raises:
        ValueError: it is damaged, or holds something else.
        OSError: it cannot be opened.
    """
    try:
        if not mmap:
            check_whole(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise unreadable(path, error) from None


def check_whole(path: str | Path) -> None:
    """Raise ValueError if a file is a damaged checkpoint; other formats have no check sums."""
    with open(path, "rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    if is_zip and not is_whole(path):
        raise ValueError("damaged, or cut short")


def unreadable(path: str | Path, error: Exception) -> Exception:
    """Return one line for whatever reading a file has raised."""
    if isinstance(error, OSError) and error.filename:
        return error
    text = str(error)
    wanted = re.search(r"(?i)unsupported global(?:: global)? (\S+)", text)
    if wanted:
        reason = f"it wants {wanted[1]}, but only tensors and plain values are read"
    elif "weights_only" in text:  # torch's advice to run what is in the file
        reason = "damaged, or not torch's"
    else:
        reason = text.splitlines()[0] if text else type(error).__name__
    return ValueError(f"{os.fspath(path)}: not a readable checkpoint ({reason})")


def faults(
    saved: Mapping[str, Tensor], own: Mapping[str, Tensor], same_dtype: bool
) -> Iterator[str]:
    """Yield what is wrong with the values of a checkpoint, one line for each key.

    Args:
        saved: the checkpoint's tensors.
        own: the model's.
        same_dtype: whether floating-point numbers must have the model's own width too; otherwise
            they may be narrower, as weights that were packed are.
    """
    weights = [key for key in saved if ".weight_quantizer." in f".{key}" and key in own]
    unset = [key for key in weights if saved[key].isnan().any()]
    if len(unset) < sum(saved[key].is_floating_point() for key in weights):
        # They are calibrated together, before the first update.
        yield from (f"{key}: is not set, though other weights have a scale" for key in unset)
    for key, value in saved.items():
        held = own.get(key.removesuffix(_HELD) + "weight") if key.endswith(_HELD) else None
        if held is not None and (held.shape, torch.int8) != (value.shape, value.dtype):
            yield f"{key}: not of its weight's shape, or no int8"
        elif key not in own:
            continue
        elif not _fits(value.dtype, own[key].dtype, same_dtype):
            yield f"{key}: of another dtype ({_short(value.dtype)} for {_short(own[key].dtype)})"
        elif value.is_floating_point():
            fault = _fault_of_values(f".{key}", value)
            if fault:
                yield f"{key}: {fault}"


def _fits(saved: torch.dtype, own: torch.dtype, same: bool) -> bool:
    both = saved.is_floating_point and own.is_floating_point
    return saved == own or (both and not same and torch.promote_types(saved, own) == own)


def _fault_of_values(key: str, value: Tensor) -> str:
    if any(part in key for part in QUANTIZER_STATE):  # NaN: not set yet
        if value.isinf().any():
            return "has infinite values"
        if value.isnan().any() and not value.isnan().all():
            return "has NaN"
        return "has a scale of zero" if key.endswith(_SCALES) and (value == 0).any() else ""
    if not value.isfinite().all():
        return "has NaN or infinite values"
    return "has negative variances" if key.endswith(".running_var") and (value < 0).any() else ""


def check_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if what was loaded for a parameter is of another shape.

    torch does not compare them: the first update would fail, or broadcast.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"the optimizer's {key} is of another shape ({tuple(value.shape)} for "
                    f"{tuple(parameter.shape)})"
                )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
