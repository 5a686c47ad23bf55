"""Starting the processes of a run: Detectron2's launcher, or torchrun's environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm

from tr_det.training.cli import mistakes_for_parent
from tr_det.training.processes import join_torchrun

Main = Callable[[argparse.Namespace], Any]


def run_processes(main: Main, args: argparse.Namespace) -> None:
    """Call ``main(args)`` in each process that Detectron2's arguments, or torchrun, ask for.

    Args:
        main: a function at the top level of a module.
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        ValueError: more processes than GPUs, or both torchrun and ``--num-gpus``.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if args.num_gpus * args.num_machines > 1:
            raise ValueError(
                f"--num-gpus={args.num_gpus}: must be left out where torchrun starts the processes"
            )
        _join_torchrun()
        main(args)
        dist.destroy_process_group()
        return
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus={args.num_gpus}: must be at most {torch.cuda.device_count()}, the number "
            "of visible GPUs"
        )
    alone = args.num_gpus * args.num_machines == 1
    launch(
        main if alone else _child,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,) if alone else (main, args),
    )


def _child(main: Main, args: argparse.Namespace) -> None:
    with mistakes_for_parent():
        main(args)
    dist.destroy_process_group()


def _join_torchrun() -> None:
    """Do what Detectron2's launcher does in each process."""
    join_torchrun()
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(local_size)
    else:  # v0.6
        for first in range(0, dist.get_world_size(), local_size):
            ranks = range(first, first + local_size)
            group = dist.new_group(list(ranks))
            if dist.get_rank() in ranks:
                comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()
