"""The processes of a run that torchrun has started, and what they tell one another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def torchrun_processes() -> Iterator[None]:
    """Join the other processes if torchrun has started this one; leave them at the end."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    join_torchrun()
    try:
        yield
    finally:
        dist.destroy_process_group()


def join_torchrun() -> None:
    """Join the other processes that torchrun has started, each with a GPU of its own if any."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if has_gpu else "gloo")


def rank() -> int:
    """Return this process' number, 0 alone."""
    return dist.get_rank() if _is_joined() else 0


def processes() -> int:
    """Return how many there are."""
    return dist.get_world_size() if _is_joined() else 1


def summed(values: Tensor) -> Tensor:
    """Return the sum over all processes."""
    if processes() > 1:
        dist.all_reduce(values)
    return values


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors by the first process'."""
    if processes() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_first(value: Any) -> Any:
    """Return the first process' value in all of them."""
    values = [value]
    if processes() > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def wait_for_all() -> None:
    """Return when every process is here."""
    if processes() > 1:
        dist.barrier()


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
