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
from tr_det.core import (
    QuantConfig,
    QuantRule,
    build_quantizer,
    quantize_model,
    set_scales,
    tr_param_groups,
)

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
OPTIONS = {
    "SGDT": [
        {},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2, "foreach": True},
        {"momentum": 0.9, "dampening": 0.2, "maximize": True},
    ],
    "AdamT": [
        {},
        {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 1e-2},
        {"amsgrad": True, "maximize": True, "foreach": True},
    ],
    "AdamWT": [
        {},
        {"weight_decay": 0.2, "tr_decay": "talr", "amsgrad": True},
        {"weight_decay": 0.2, "tr_decay": "lr", "maximize": True, "foreach": True},
    ],
    "NAdamT": [
        {},
        {"weight_decay": 1e-2, "momentum_decay": 1e-2, "foreach": True},
        {"weight_decay": 0.2, "decoupled_weight_decay": True},
    ],
    "AdamaxT": [{}, {"weight_decay": 1e-2, "maximize": True, "foreach": True}],
    "RMSpropT": [{}, {"momentum": 0.9, "centered": True, "alpha": 0.9, "weight_decay": 1e-2}],
    "AdagradT": [{}, {"lr_decay": 0.1, "weight_decay": 1e-2, "initial_accumulator_value": 0.2}],
}
VARIANTS = [(name, options) for name, many in OPTIONS.items() for options in many]


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


def pair(name: str = "SGDT", seed: int = 0, learn_weight_scale: bool = False, **kwargs):
    model = make_model(seed, learn_weight_scale=learn_weight_scale)
    return model, make_optimizer(model, name, **kwargs)


def tr_group(weight: Tensor, bits: int = 2, name: str = "w", scale: float | None = 0.3) -> dict:
    """A TR group of one weight on a fixed grid; ``scale=None`` calibrates it on the weight."""
    quantizer = build_quantizer("fixed_grid", bits, signed=True, learn_scale=False)
    if scale is None:
        quantizer.calibrate(weight.detach() if weight.numel() else torch.ones(1))
    else:
        torch.nn.init.constant_(quantizer.scale, scale)
    return {"params": [nn.Parameter(weight)], "quantizer": quantizer, "name": name}


def torch_class(optimizer) -> type:
    """The torch optimizer that an optimizer schedules."""
    return getattr(torch.optim, type(optimizer).__name__.removesuffix("T"))


def loss(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return F.mse_loss(model(x), y)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator), torch.randn(16, 4, generator=generator)


def train(model: nn.Module, optimizer, steps=range(STEPS), without=()) -> None:
    """Make steps; parameters of the names in ``without`` get no gradient."""
    for step in steps:
        optimizer.zero_grad()
        loss(model, step).backward()
        for name in without:
            model.get_parameter(name).grad = None
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
    """All state of a run: weights, scales, momentum, controllers."""
    return leaves(copy.deepcopy([model.state_dict(), optimizer.state_dict()]))


def assert_equal(actual: dict[str, object], expected: dict[str, object]) -> None:
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(actual[path], value, rtol=0, atol=0, msg=path)
        else:
            assert repr(actual[path]) == repr(value), path  # NaN equals itself


def through_file(value: object) -> object:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def tr_groups(optimizer) -> list[dict]:
    return [group for group in optimizer.param_groups if "quantizer" in group]
