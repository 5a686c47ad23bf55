"""A quantized network of three layers and its runs, small enough to repeat in every test.

Layer "0" stays in full precision, "3" has 2-bit weights, "5" has 4-bit weights.
"""

from __future__ import annotations

import copy
import io

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tr_det.core
from tr_det.core import QuantConfig, QuantRule, quantize_model, set_scales, tr_param_groups

STEPS = 20
OPTIMIZERS = {
    "SGDT": {"momentum": 0.9, "weight_decay": 1e-2},
    "AdamT": {"weight_decay": 1e-2},
    "AdamWT": {"weight_decay": 1e-1},
    "NAdamT": {"weight_decay": 1e-2},
    "AdamaxT": {"weight_decay": 1e-2},
    "RMSpropT": {"momentum": 0.9, "weight_decay": 1e-2},
    "AdagradT": {"weight_decay": 1e-2},
}
NAMES = tuple(OPTIMIZERS)


def make_model(seed: int = 0, bits: int = 2, **options) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    )
    rules = (QuantRule(pattern="0", skip=True), QuantRule(pattern="5", weight_bits=4))
    quantize_model(model, QuantConfig(weight_bits=bits, rules=rules, **options))
    with torch.no_grad():
        set_scales(model, lambda: model(batch(0)[0]))
    return model


def make_optimizer(model: nn.Module, name: str = "SGDT", **kwargs):
    lr = 0.05 if name == "SGDT" else 0.01
    own = {**OPTIMIZERS[name], **kwargs}
    groups = tr_param_groups(model, lr, own.pop("weight_decay"))
    options = {"total_steps": STEPS, "tr_factor": 0.05, "tr_momentum": 0.5, "tr_gain": 0.1}
    return getattr(tr_det.core, name)(groups, **{"lr": lr, **options, **own})


def pair(name: str = "SGDT", seed: int = 0, **kwargs):
    model = make_model(seed)
    return model, make_optimizer(model, name, **kwargs)


def loss(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return F.mse_loss(model(x), y)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator), torch.randn(16, 4, generator=generator)


def train(model: nn.Module, optimizer, steps=range(STEPS)) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()


def leaves(value: object, path: str = "") -> dict[str, object]:
    """Flatten nested dicts, lists and tuples into {path: leaf}."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value}
    return {k: v for key, item in items for k, v in leaves(item, f"{path}/{key}").items()}


def snapshot(model: nn.Module, optimizer) -> dict[str, object]:
    """Everything that a run depends on: weights, scales, momentum, controllers."""
    return leaves(copy.deepcopy([model.state_dict(), optimizer.state_dict()]))


def assert_equal(actual: dict[str, object], expected: dict[str, object]) -> None:
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(actual[path], value, rtol=0, atol=0, msg=path)
        else:
            assert actual[path] == value, path


def through_file(value: object) -> object:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def tr_groups(optimizer) -> list[dict]:
    return [group for group in optimizer.param_groups if "quantizer" in group]
