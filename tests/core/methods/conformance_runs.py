"""Runs of every method, also in other processes."""

from functools import partial

import torch
import torch.distributed as dist
from small_runs import batch, loss, make_model, make_optimizer, train
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
    """Never changes its running statistics, since processes and skipped steps have other data."""

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
    """Yield functions that run the model on a batch; each process has its own batches."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    for index in range(4):
        x, _ = batch(1000 + 10 * rank + index)
        yield partial(model, x)


def halfway(case, optimizer):
    """Return the state of a run after half of its updates."""
    model, made, _ = start(case, optimizer)
    train(model, made, range(STEPS // 2))
    return [model.state_dict(), made.state_dict()]


def finish(case, optimizer, state):
    """Return the state of a run that is resumed from the middle."""
    model, made, attached = start(case, optimizer, seed=1)
    model.load_state_dict(state[0])
    made.load_state_dict(state[1])
    train(model, made, range(STEPS // 2, STEPS))
    assert attached.step == STEPS
    return [model.state_dict(), made.state_dict()]


def in_two_processes(rank, folder):
    """Train in one of two processes on data of its own; write the state."""
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


def resume(rank, folder):
    """Resume every run in a process of its own."""
    torch.set_num_threads(1)
    states = torch.load(f"{folder}/in.pth", weights_only=True)
    ends = {f"{c} {o}": finish(c, o, states[f"{c} {o}"]) for c, o in cases()}
    torch.save(ends, f"{folder}/out.pth")
