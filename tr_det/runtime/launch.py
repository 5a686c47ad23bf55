"""Starting the processes of a run that torchrun has not started."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException, spawn

from tr_det.runtime.cli import mistakes_for_parent
from tr_det.runtime.processes import end_with_parent, join
from tr_det.runtime.signals import SIGNALS, Stopped, ended_by_signals, passed_on, waiting

AUTO = "auto"

_GRACE = 10.0
"""Seconds in which processes may end after the first one has."""


def launch(
    main: Callable[[], Any], processes: int, machines: int = 1, machine: int = 0, url: str = AUTO
) -> None:
    """Call ``main`` in new processes that have joined, and return when they have ended.

    They end by the signals that come to this one, and with it.

    Args:
        main: to be pickled.
        processes: of each machine.
        machines: how many run this.
        machine: number of this one.
        url: ``tcp://HOST:PORT`` of the first machine; "auto" where it is the only one.

    Raises:
        Stopped: a signal has ended them.
        ChildProcessError: the system has ended one of them, e.g. for lack of memory.
    """
    if url == AUTO:
        url = f"tcp://127.0.0.1:{_free_port()}"
    with waiting():
        method = multiprocessing.get_start_method()
        args = (main, method, processes * machine, processes * machines, url)
        context = spawn(_run, args, processes, join=False)
    with passed_on(context.pids()):
        try:
            while not context.join(grace_period=_GRACE):
                pass
        except ProcessExitedException as error:
            if error.exit_code - 128 in SIGNALS:
                raise Stopped(error.exit_code - 128) from None
            if error.signal_name is None:
                raise
            raise ChildProcessError(
                f"a process of the run was ended by {error.signal_name}; --resume goes on from its "
                "last checkpoint"
            ) from None


def _run(index: int, main: Callable[[], Any], method: str, first: int, size: int, url: str) -> None:
    end_with_parent()
    # Otherwise a loader's workers would be spawned, too, and take as long to start as this process.
    multiprocessing.set_start_method(method, force=True)
    with ended_by_signals(), mistakes_for_parent():
        join(index, init_method=url, world_size=size, rank=first + index)
        main()
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])
