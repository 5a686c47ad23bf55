"""Two processes: scales, codes and controllers agree bit for bit."""

import os

import torch
import torch.distributed as dist
from small_runs import assert_equal, leaves
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tr_det.core import SGDT, QuantConfig, QuantRule, attach, quantize_model, tr_param_groups

STEPS = 6


SETTINGS = {
    "paper": {"tr_factor": 1e-2},
    "ours": {"tr_factor": "auto", "tr_update": "pi", "tr_momentum": None, "tr_nonfinite": "skip"},
}


def _worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for name, settings in SETTINGS.items():
        torch.save(_run(rank, settings), f"{folder}/{name}{rank}.pth")
    dist.destroy_process_group()


def _run(rank: int, settings: dict) -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
    )
    quantize_model(model, QuantConfig(rules=(QuantRule(pattern="0", skip=True),)))
    groups = tr_param_groups(model, lr=0.1)
    optimizer = SGDT(groups, lr=0.1, momentum=0.9, total_steps=STEPS, **settings)
    attach([], model, optimizer, STEPS)
    wrapped = DistributedDataParallel(model)
    torch.manual_seed(rank)  # each process has its own data
    for _ in range(STEPS):
        optimizer.zero_grad()
        wrapped(torch.randn(4, 3, 6, 6)).square().mean().backward()
        optimizer.step()
    metrics = optimizer.transition_metrics()
    return {
        "model": model.state_dict(),
        "codes": [layer.weight_quantizer.codes(layer.weight) for layer in (model[2], model[5])],
        "controllers": [metrics.running, metrics.talr, metrics.rate, metrics.target],
    }


def test_two_processes_agree_bit_for_bit(run_in_new, tmp_path):
    port = 20_000 + os.getpid() % 20_000
    run_in_new(2, _worker, port, str(tmp_path))
    for name in SETTINGS:
        first, second = (torch.load(tmp_path / f"{name}{rank}.pth") for rank in (0, 1))
        assert first["controllers"][2].sum() > 0  # some codes did change
        assert_equal(leaves(first), leaves(second))
