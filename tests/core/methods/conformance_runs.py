"""Runs of every method; as a program, one that is resumed: ``python THIS IN.pth OUT.pth``.

Also what two processes do, for ``torch.multiprocessing.spawn``.
"""

import sys
from functools import partial

import torch
import torch.distributed as dist
from small_runs import batch, loss, make_model, make_optimizer, through_file, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tr_det.core import METHODS, attach, build_method, without_transition
from tr_det.core.quantizers.pool import over_processes

TOGETHER = "all of them"
OPTIONS = {
    "tracker": {"momentum": 0.3},
    "freezing": {"threshold": 0.4},
    "dampening": {"weight_final": 1.0},
    "bn_reestimation": {"batches": 3},
}
STEPS = 16


class StillNorm(nn.BatchNorm1d):
    """Keeps its running statistics in training, as processes and skipped steps have other data."""

    def forward(self, x):
        out = super().forward(x)
        self.num_batches_tracked.zero_()
        return out


def names(case):
    return sorted(METHODS) if case == TOGETHER else [case]


def cases():
    kinds = [*sorted(METHODS), TOGETHER]
    return [(case, optimizer) for case in kinds for optimizer in ("SGD", "SGDT")]


def methods_of(case):
    chosen = names(case)
    if "freezing" in chosen and "tracker" not in chosen:
        chosen = ["tracker", *chosen]
    return [build_method(name, **OPTIONS.get(name, {})) for name in chosen]


def start(case, optimizer, seed=0):
    """Return (model, optimizer, attached) in which codes move every few updates."""
    model = make_model(seed)
    model.append(StillNorm(4, momentum=0.0))
    made = make_optimizer(model, momentum=0.5, tr_factor=0.4, tr_gain=1.0)
    if optimizer == "SGD":
        groups = [
            {"params": g["params"], "weight_decay": g["weight_decay"]}
            for g in without_transition(made.param_groups)
        ]
        made = torch.optim.SGD(groups, lr=0.5, momentum=0.5)
    return model, made, attach(methods_of(case), model, made, STEPS, batches=partial(data, model))


def data(model):
    """Yield forwards on other batches in each process."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    for index in range(4):
        x, _ = batch(1000 + 10 * rank + index)
        yield partial(model, x)


def halfway(case, optimizer):
    """Return the state of a run after half of its updates."""
    model, made, _ = start(case, optimizer)
    train(model, made, range(STEPS // 2))
    return {"model": model.state_dict(), "optimizer": made.state_dict()}


def finish(case, optimizer, state):
    """Return the state of a run that goes on from the middle."""
    model, made, attached = start(case, optimizer, seed=1)
    model.load_state_dict(state["model"])
    made.load_state_dict(state["optimizer"])
    train(model, made, range(STEPS // 2, STEPS))
    assert attached.step == STEPS
    return {"model": model.state_dict(), "optimizer": made.state_dict()}


def in_two_processes(rank, folder):
    """Train on other data in each of two processes; write each one's state."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    states = {}
    for case, optimizer in cases():
        model, made, attached = start(case, optimizer)
        wrapped = DistributedDataParallel(model)
        for step in range(5):
            made.zero_grad()
            loss(wrapped, 2 * step + rank).backward()
            made.step()
        with attached.evaluating():
            evaluated = {name: value.clone() for name, value in model.state_dict().items()}
        states[f"{case} {optimizer}"] = [model.state_dict(), made.state_dict(), evaluated]
    sample = torch.arange(5.0) + 10 * rank if rank == 0 else torch.tensor([100.0])
    states["pool"] = [over_processes(sample[:1], how) for how in ("sum", "max")]
    states["pool"].append(over_processes(sample, "sample"))
    torch.save(states, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    source, target = sys.argv[1:]
    saved = torch.load(source, weights_only=True)
    torch.save(
        {
            f"{case} {optimizer}": through_file(
                finish(case, optimizer, saved[f"{case} {optimizer}"])
            )
            for case, optimizer in cases()
        },
        target,
    )
