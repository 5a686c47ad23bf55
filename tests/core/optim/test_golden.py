"""Golden traces: the controllers' values when this file was last checked against the papers.

Weights and gradients are made by integer arithmetic, so that neither a random generator nor a
matrix product of another torch version or processor can change them. Rewrite the traces, after
thought, with ``python tests/core/optim/test_golden.py``.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from small_runs import tr_group

import tr_det.core

FILE = Path(__file__).with_name("golden.json")
STEPS = 60
RECORDED = (0, 1, 2, 5, 10, 20, 30, 45, 59)
SHAPES = {"a": ((16, 3, 3, 3), 2), "b": ((40, 10), 4), "c": ((64,), 1)}
OPTIMIZERS = {
    "SGDT": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2},
    "AdamT": {"lr": 0.02, "weight_decay": 1e-2},
    "AdamWT": {"lr": 0.02, "weight_decay": 0.1},
    "NAdamT": {"lr": 0.02},
    "AdamaxT": {"lr": 0.02},
    "RMSpropT": {"lr": 0.01, "momentum": 0.9},
    "AdagradT": {"lr": 0.05},
}
SETTINGS = {
    "paper": {"tr_momentum": 0.9},
    "paper with gain": {"tr_momentum": 0.9},
    "multiplicative": {"tr_update": "multiplicative", "tr_momentum": 0.8},
    "momentum": {"tr_update": "momentum", "tr_momentum": 0.8, "tr_schedule": "linear"},
    "pi": {"tr_update": "pi", "tr_momentum": None},
    "pi, auto": {"tr_update": "pi", "tr_momentum": None, "tr_factor": "auto"},
    "pi, warm-up, final": {
        "tr_update": "pi", "tr_momentum": 0.8, "tr_warmup": 20, "tr_final": 1e-3,
    },
    "model, step": {"tr_granularity": "model", "tr_gain": 1.0, "tr_schedule": "step"},
    "effective step size": {"tr_signal": "effective_step_size", "tr_gain": 1.0},
}  # fmt: skip
CASES = [(name, "pi") for name in OPTIMIZERS]
CASES += [(name, "paper with gain") for name in OPTIMIZERS]
CASES += [("SGDT", key) for key in SETTINGS if ("SGDT", key) not in CASES]


def numbers(shape, salt):
    """Return float32 in [-0.5, 0.5), multiples of 2**-12, well mixed."""
    count = torch.Size(shape).numel()
    index = torch.arange(count, dtype=torch.int64)
    mixed = (index * 2654435761 + salt * 40503 + 12345) % (1 << 31)
    mixed = (mixed * 1103515245 + 12345) % (1 << 31)
    return ((mixed >> 16) % 4096).to(torch.float32).div(4096).sub(0.5).reshape(shape)


def checksum(quantizer, weight):
    """Return one of the levels in steps of the grid: the codes, -1 and 1 on the binary one."""
    grid = quantizer.grid()
    steps = grid.mul * quantizer.codes(weight) + grid.add
    return zlib.crc32(bytes(steps.view(-1).view(torch.uint8).tolist()))


def trace(name, key):
    """Return, per recorded update and layer: rate, K, U, checksum of the codes."""
    groups = [
        tr_group(numbers(shape, salt), bits, layer, scale=None)
        for salt, (layer, (shape, bits)) in enumerate(SHAPES.items())
    ]
    options = {"total_steps": STEPS, "tr_factor": 0.02, **OPTIMIZERS[name], **SETTINGS[key]}
    if "gain" in key:
        options["tr_gain"] = 10 * options["lr"]
    optimizer = getattr(tr_det.core, name)(groups, **options)
    rows = []
    for step in range(STEPS):
        for salt, group in enumerate(groups):
            weight = group["params"][0]
            noise = numbers(weight.shape, 1000 + 10 * step + salt)
            weight.grad = 0.1 * weight.detach() + 0.5 * noise
        optimizer.step()
        if step in RECORDED:
            rows.append(
                [
                    [
                        *(group[key].item() for key in ("transition_rate", "running_tr", "talr")),
                        checksum(group["quantizer"], group["params"][0]),
                    ]
                    for group in optimizer.param_groups
                ]
            )
    return rows


@pytest.mark.parametrize(("name", "key"), CASES)
def test_traces_are_what_they_were(name, key) -> None:
    golden = json.loads(FILE.read_text())[f"{name}, {key}"]
    for step, ours, theirs in zip(RECORDED, trace(name, key), golden, strict=True):
        for layer, mine, expected in zip(SHAPES, ours, theirs, strict=True):
            assert mine[:3] == pytest.approx(expected[:3], rel=1e-4, abs=1e-9), (step, layer)
            assert mine[3] == expected[3], (step, layer, "codes")


def test_traces_move() -> None:
    """A trace in which nothing transits would be worth nothing."""
    for rows in json.loads(FILE.read_text()).values():
        for layer in range(len(SHAPES)):
            assert sum(row[layer][0] > 0 for row in rows) >= 2, rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    traces = {f"{name}, {key}": trace(name, key) for name, key in CASES}
    FILE.write_text(
        json.dumps(traces, indent=None, separators=(",", ":")).replace("]]],", "]]],\n") + "\n"
    )
