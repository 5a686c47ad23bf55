"""Starting the processes of a run, unless torchrun has."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from tr_det.core.errors import check
from tr_det.runtime.launch import AUTO, launch
from tr_det.runtime.processes import join_torchrun

Main = Callable[[argparse.Namespace], Any]


def run_processes(main: Main, args: argparse.Namespace) -> None:
    """Call ``main(args)`` in each process that Detectron2's arguments, or torchrun, ask for.

    Args:
        main: a function at the top level of a module.
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        ValueError: numbers that do not go together, more processes than GPUs, or both torchrun and
            ``--num-gpus``.
    """
    _check_numbers(args)
    alone = args.num_gpus * args.num_machines <= 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        check("--num-gpus", args.num_gpus, alone, "left out where torchrun starts the processes")
        join_torchrun()
        _run(main, args, int(os.environ["LOCAL_WORLD_SIZE"]))
        dist.destroy_process_group()
    elif alone:
        main(args)
    else:
        run = partial(_run, main, args, args.num_gpus)
        launch(run, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)


def _check_numbers(args: argparse.Namespace) -> None:
    most = torch.cuda.device_count() if torch.cuda.is_available() else sys.maxsize
    several = args.num_machines > 1
    for flag, value, holds, allowed in (
        ("num-gpus", args.num_gpus, args.num_gpus >= several, f"at least {int(several)}"),
        ("num-gpus", args.num_gpus, args.num_gpus <= most, f"at most {most}, the visible GPUs"),
        ("num-machines", args.num_machines, args.num_machines >= 1, "at least 1"),
        (
            "machine-rank",
            args.machine_rank,
            0 <= args.machine_rank < args.num_machines,
            "from 0 to one less than --num-machines",
        ),
        (
            "dist-url",
            args.dist_url,
            not (several and args.dist_url == AUTO),
            "tcp://HOST:PORT of the first machine, where there are several",
        ),
    ):
        check(f"--{flag}", value, holds, allowed)


def _run(main: Main, args: argparse.Namespace, local_size: int) -> None:
    """Tell Detectron2 which processes are on one machine, as its own launcher does."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(local_size)
    else:  # v0.6
        for first in range(0, dist.get_world_size(), local_size):
            ranks = range(first, first + local_size)
            group = dist.new_group(list(ranks))
            if dist.get_rank() in ranks:
                comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()
    main(args)
