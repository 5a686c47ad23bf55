"""The processes of a run: torchrun's, what they send one another, and the lock against others."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor

from tr_det.core.errors import check


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
    """Join the other processes that torchrun has started."""
    end_with_parent()
    gpus, own = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    check("--nproc-per-node", own, not 0 < gpus < own, f"at most {gpus}, the visible GPUs")
    join(int(os.environ["LOCAL_RANK"]))


def join(local_rank: int, **options: Any) -> None:
    """Join the other processes, with a GPU of one's own if there are any.

    Args:
        local_rank: number of this process on its machine.
        **options: of torch's ``init_process_group``; those that torchrun sets are its own.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    # The others wait as long as the first one takes to score detections.
    options = {"timeout": timedelta(minutes=30), **options}
    dist.init_process_group("nccl" if has_gpu else "gloo", **options)


def restarted() -> bool:
    """Return whether torchrun has started the processes again, because one was lost.

    A process that takes the place of a lost one may not know: all ask each other, so all must call.
    """
    count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    return bool(asked_for_largest(count)() if processes() > 1 else count)


def end_with_parent() -> None:
    """Kill this process as soon as the one that has started it is gone, from now on or already.

    Of processes that multiprocessing has not started, those are meant whose parent is still there.
    """
    parent, number = multiprocessing.parent_process(), os.getppid()

    def watch() -> None:
        if parent is not None:
            parent.join()
        else:
            while os.getppid() == number:
                time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def begin_worker(_: int) -> None:
    """Leave signals to the process that a loader's worker reads for, and end with it."""
    os.setpgrp()  # terminals and launchers send signals to groups
    end_with_parent()


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


def asked_for_largest(value: int) -> Callable[[], int]:
    """Ask for the largest of all processes' values; return what waits for the answer, on the host.

    To be called by several processes, in all of them.
    """
    values = torch.tensor(value)
    work = dist.all_reduce(values, dist.ReduceOp.MAX, group=_host_group(), async_op=True)

    def answer() -> int:
        work.wait()
        return int(values)

    return answer


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
def only_writer(
    folder: str | Path, key: str, wait: bool = False, pause: float = 2.0
) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if needed.

    The system releases the lock when a process dies. Processes that have joined are one run.

    Args:
        folder: of the run.
        key: that names it.
        wait: until the other run has ended, instead of refusing.
        pause: seconds between two attempts.

    Raises:
        ValueError: another run writes there.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / ".lock")
    is_waiting = False
    # The others ask the first one, again and again: no collective lasts as long as a run.
    # It may be held for a moment by somebody who only asks (`is_written`).
    while not from_first(rank() != 0 or _acquire(lock, 0.5)):
        if not wait:
            raise ValueError(
                f"{key}={str(folder)!r}: another run writes there; must be another "
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


def is_written(folder: str | Path) -> bool:
    """Return whether a run writes to a folder (`only_writer`)."""
    lock = FileLock(Path(folder) / ".lock")
    if not Path(lock.lock_file).is_file():
        return False
    free = _acquire(lock)
    lock.release()
    return not free


def _acquire(lock: FileLock, timeout: float = 0.0) -> bool:
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    except OSError as error:  # file systems of clusters need not have locks
        message = "%s cannot be locked (%s): make sure that no other run writes there"
        logging.getLogger(__name__).warning(message, lock.lock_file, error)
    return True


@cache
def _host_group() -> Any:
    """Return a group of all processes for tensors on the CPU; None is the one that has joined."""
    return dist.new_group(backend="gloo") if dist.get_backend() != "gloo" else None


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
