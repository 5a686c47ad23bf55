"""Nagel et al.'s tracker and freezing in float64, and models and optimizers to compare with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tr_det.core import SGDT, Method, QuantConfig, QuantRule, quantize_model, tr_param_groups
from tr_det.core.optim.groups import without_transition


class Oscillation:
    """The paper's algorithm 1 for one weight tensor, call by call."""

    def __init__(self, m, use_average=True):
        self.m, self.use_average = m, use_average
        self.previous = None
        self.events = 0

    def __call__(self, x, threshold=0.0):
        """Return this call's integers with the frozen ones in place.

        While the threshold is 0 there is neither freezing nor an average.
        """
        x = np.array(x, np.float64)
        if self.previous is None:
            self.previous, self.average = x.copy(), None
            self.direction, self.f = np.zeros_like(x), np.zeros_like(x)
            self.frozen, self.at = np.zeros(x.shape, bool), np.zeros_like(x)
        x = np.where(self.frozen, self.at, x)
        moved = np.sign(x - self.previous)
        oscillates = moved * self.direction == -1
        self.events += int(oscillates.sum())
        self.f = self.m * oscillates + (1 - self.m) * self.f
        self.direction = np.where(moved != 0, moved, self.direction)
        self.previous = x.copy()
        if threshold > 0:
            self.average = x.copy() if self.average is None else self.average
            hit = (self.f > threshold) & ~self.frozen
            self.at = np.where(hit, np.rint(self.average) if self.use_average else x, self.at)
            self.frozen |= hit
            self.average = self.m * x + (1 - self.m) * self.average
        return x


class Written(torch.optim.SGD):
    """An optimizer whose updates write weights from a list."""

    def __init__(self, weight, values):
        super().__init__([weight], lr=1.0)
        self.values = iter(values)

    @torch.no_grad()
    def step(self, closure=None):
        self.param_groups[0]["params"][0].fill_(next(self.values))


class Recorder(Method):
    """Stores the codes that methods are given after each update."""

    def __init__(self):
        self.codes = []

    def reads(self, step):
        return True

    def after_update(self, step, updates):
        self.codes.append({name: update.codes.clone() for name, update in updates.items()})


def one_weight(bits=3):
    """Return a layer with one weight, zero, whose code is its rounded value."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    config = QuantConfig(weight_bits=bits, act_bits=32, weight_quantizer="lsq")
    quantize_model(model, config)
    with torch.no_grad():
        model[0].weight_quantizer.scale.fill_(1.0)
        model[0].weight.zero_()
    model[0].weight.grad = torch.zeros(1, 1)
    return model


def layers():
    """Return layers with 2, 3 and 8 bits, for training with random gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 4))
    rules = (QuantRule(pattern="1", weight_bits=3), QuantRule(pattern="2", weight_bits=8))
    quantize_model(
        model, QuantConfig(weight_bits=2, act_bits=32, weight_quantizer="lsq", rules=rules)
    )
    for layer in model:
        layer.weight_quantizer.calibrate(layer.weight)
    return model


def optimizer_of(model, name, steps):
    groups = tr_param_groups(model, 0.05, 1e-2)
    if name == "SGD":
        return torch.optim.SGD(without_transition(groups), lr=0.05, momentum=0.5)
    # A high rate, so that codes change until the end.
    tr = {"tr_factor": 0.2, "tr_schedule": "constant", "tr_momentum": 0.5}
    return SGDT(groups, lr=0.05, momentum=0.5, total_steps=steps, **tr)


def codes_of(layer):
    """Return the integers of a layer's latent weight, divided in float32 as in a forward pass."""
    bits = layer.weight_quantizer.bits
    weight, scale = layer.weight.detach().numpy(), layer.weight_quantizer.scale.detach().numpy()
    return np.clip(np.rint(weight / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def at_random(model, step):
    """Give every weight a random gradient."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
