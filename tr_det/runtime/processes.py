"""The processes of a run: torchrun's, what they send one another, and the lock against others."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
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


@contextmanager
def only_writer(folder: str | Path, wait: bool = False, pause: float = 2.0) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if needed.

    The system releases the lock when a process dies. Processes that torchrun has started together
    are one run.

    Args:
        folder: of the run.
        wait: until the other run has ended, instead of refusing.
        pause: seconds between two attempts.

    Raises:
        ValueError: another run writes there.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / ".lock")
    is_waiting = False
    # The others ask the first one, again and again: no collective lasts as long as a run.
    while not from_first(rank() != 0 or _acquire(lock)):
        if not wait:
            raise ValueError(
                f"run.output_dir={str(folder)!r}: another run writes there; must be another "
                "folder, or wait for its end"
            )
        if not is_waiting:
            message = "Waiting for %s, which another run is training"
            logging.getLogger(__name__).info(message, folder)
            is_waiting = True
        time.sleep(pause)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except OSError as error:  # file systems of clusters need not have locks
        message = "%s cannot be locked (%s): make sure that no other run writes there"
        logging.getLogger(__name__).warning(message, lock.lock_file, error)
    return True


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
