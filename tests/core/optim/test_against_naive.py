"""The TR-scheduled optimizers against ``naive.py``, a literal Algorithm 1 in double precision.

Two comparisons, because the controller of ``tr_det`` is single precision by design:

*Free run.* Both sides run their own controller for 200 updates. What differs is the rounding of U
and K, bounded below, and the random walk it causes in the weights. The target R and the integer
codes must be equal. The codes can be, because every case asserts that no weight ever came nearer to
a transition point than 1.4 times the tolerance on the weights (the seeds were chosen for this, by
running ``naive.py`` alone).

*Forced run.* The oracle is given the U and K that the optimizer shows. Then nothing but the weight
update is compared, tightly, and the controller is checked one update at a time, to a few ulps.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, field

import naive
import numpy as np
import pytest
import torch
from small_runs import tr_group

import tr_det.core

STEPS = 200
EPS32 = float(np.finfo(np.float32).eps)
TOLERANCE_W = 1e-5
SCALE = float(np.float32(0.3))
# name -> (shape, bits)
LAYERS = {
    "conv": ((3, 2, 3, 3), 2),
    "linear": ((4, 6), 4),
    "binary": ((5, 4), 1),
    "single": ((1,), 2),
}


@dataclass
class Case:
    """One optimizer with one setting of the controller.

    The settings are not those of a training run (m = 0.99, lambda = 1e-3 would hardly move in 200
    updates of a few dozen weights): they are chosen so that the TALR moves by factors.
    """

    optimizer: str
    seed: int
    lr: float
    kwargs: dict = field(default_factory=dict)  # the torch optimizer's own
    changes: dict = field(default_factory=dict)  # of the settings below
    saturates: bool = False

    def settings(self) -> dict:
        """Return the settings of the controller, which optimizer and oracle call alike."""
        defaults = {"tr_factor": 0.05, "tr_momentum": 0.9}
        return {"lr": self.lr, "total_steps": STEPS, **defaults, **self.changes}

    def rule(self) -> naive.NaiveSGD | naive.NaiveAdam:
        """Return the oracle of the direction."""
        own = {key: value for key, value in self.kwargs.items() if key != "foreach"}
        if self.optimizer == "SGDT":
            return naive.NaiveSGD(**own)
        return naive.NaiveAdam(decoupled=self.optimizer == "AdamWT", **own)


MOMENTUM, DECAY = {"momentum": 0.9}, {"weight_decay": 0.5}
NESTEROV = {**MOMENTUM, "nesterov": True, "weight_decay": 0.3}
MAXIMIZED_SGD = {**MOMENTUM, "weight_decay": 0.3, "maximize": True, "foreach": True}
COARSE_ADAM = {"betas": (0.8, 0.95), "eps": 1e-3, **DECAY}
MAXIMIZED_ADAM = {**DECAY, "maximize": True, "foreach": True}
GAIN = {"tr_gain": 0.05}
LARGE_GAIN = {"tr_factor": 0.02, "tr_momentum": 0.875, "tr_gain": 0.2}
DAMPENING = {"momentum": 0.8, "dampening": 0.3}
CASES = {
    "sgd": Case("SGDT", 39, 0.02, saturates=True),
    "sgd_momentum": Case("SGDT", 32, 0.005, MOMENTUM),
    "sgd_momentum_gain": Case("SGDT", 41, 0.02, MOMENTUM, LARGE_GAIN, saturates=True),
    "sgd_dampening": Case("SGDT", 47, 0.01, DAMPENING, {"tr_final": 0.01}),
    "sgd_weight_decay": Case("SGDT", 114, 0.02, DECAY),
    "sgd_nesterov_weight_decay": Case("SGDT", 54, 0.005, NESTEROV),
    "sgd_foreach_maximize": Case("SGDT", 85, 0.005, MAXIMIZED_SGD),
    "adam": Case("AdamT", 98, 0.01),
    "adam_l2": Case("AdamT", 108, 0.01, COARSE_ADAM, GAIN, saturates=True),
    "adam_foreach_maximize": Case("AdamT", 71, 0.01, MAXIMIZED_ADAM),
    "adamw_decay_by_talr": Case("AdamWT", 80, 0.01, DECAY, GAIN, saturates=True),
    "adamw_decay_by_lr": Case("AdamWT", 0, 0.01, DECAY, {"tr_decay": "lr", **GAIN}, saturates=True),
}


def lr_at(case: Case, t: int) -> float:
    """Return the LR that a scheduler would write into every group before update t."""
    return case.lr * 0.5 * (1.0 + math.cos(math.pi * t / STEPS))


def make_inputs(seed: int) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Return initial weights and per-step gradients, all of them exact in single precision."""
    rng = np.random.default_rng(seed)

    def draw(std: float, shape: tuple[int, ...]) -> np.ndarray:
        return rng.normal(0.0, std, shape).astype(np.float32).astype(np.float64)

    weights = [draw(0.1, shape) for shape, _ in LAYERS.values()]
    grads = [[draw(1.0, shape) for shape, _ in LAYERS.values()] for _ in range(STEPS)]
    return weights, grads


def make_naive(case: Case, weights: list[np.ndarray]) -> naive.NaiveTR:
    """Return the oracle at update 0."""
    layers = [
        naive.NaiveLayer(weight.copy(), SCALE, bits)
        for weight, (_, bits) in zip(weights, LAYERS.values(), strict=True)
    ]
    return naive.NaiveTR(layers, case.rule(), **case.settings())


@functools.cache
def free_run(name: str) -> tuple[naive.NaiveTR, list[list[naive.NaiveLayer]]]:
    """Return the oracle after the updates of a case, and its layers after each of them."""
    case = CASES[name]
    weights, grads = make_inputs(case.seed)
    oracle, seen = make_naive(case, weights), []
    for t in range(STEPS):
        oracle.step(grads[t], lr_at(case, t))
        seen.append([copy.copy(layer) for layer in oracle.layers])
    return oracle, seen


def make_tr_groups(weights: list[np.ndarray], dtype: torch.dtype) -> list[dict]:
    """Return one group per layer of ``LAYERS``."""
    return [
        tr_group(torch.tensor(weight, dtype=dtype), bits, name, SCALE)
        for weight, (name, (_, bits)) in zip(weights, LAYERS.items(), strict=True)
    ]


def build(case: Case, groups: list[dict]) -> torch.optim.Optimizer:
    """Return the optimizer of a case."""
    return getattr(tr_det.core, case.optimizer)(groups, **case.settings(), **case.kwargs)


def step_torch(
    optimizer: torch.optim.Optimizer, case: Case, t: int, grads: list[np.ndarray]
) -> list[list[int]]:
    """Do update t; return the codes of the weights before it, -1 and 1 on the binary grid."""
    codes = []
    for group, grad in zip(optimizer.param_groups, grads, strict=True):
        (parameter,) = group["params"]
        parameter.grad = torch.tensor(grad, dtype=parameter.dtype)
        group["lr"] = lr_at(case, t)
        grid = group["quantizer"].grid()
        steps = grid.mul * group["quantizer"].codes(parameter) + grid.add
        codes.append(steps.reshape(-1).tolist())
    optimizer.step()
    return codes


def weight_of(group: dict) -> np.ndarray:
    """Return the weight of a TR group in double precision."""
    return group["params"][0].detach().double().numpy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_free_run_follows_algorithm_1(name: str, dtype: torch.dtype) -> None:
    """Codes, K, U, R and w of 200 updates equal those of the literal algorithm.

    Tolerances, with eps = 2^-23:
        R   one rounding to single precision: eps relative.
        K   each update adds at most about 2 eps of relative error and forgets a share 1 - m of the
            old one: 4 eps / (1 - m) of the largest K.
        U   each update adds one rounding of U and eta times the error of K; max(0, .) does not
            amplify: STEPS * (eps * max U + eta * error of K). A bound, far above what is seen.
        w   the direction does not depend on U (but for the weight decay, which contracts), so the
            errors of U add up like a random walk. A single precision emulation of the controller in
            NumPy gives 1e-6 to 5e-6 at the end; 1e-5 is allowed, less than the distance that
            every weight keeps from every transition point.
    """
    case = CASES[name]
    weights, grads = make_inputs(case.seed)
    oracle, seen = free_run(name)
    optimizer = build(case, make_tr_groups(weights, dtype))
    transitions = [0] * len(LAYERS)
    talr = [[] for _ in LAYERS]
    largest_running = [0.0] * len(LAYERS)
    for t in range(STEPS):
        codes = step_torch(optimizer, case, t, grads[t])
        for i, (group, layer) in enumerate(zip(optimizer.param_groups, seen[t], strict=True)):
            where = f"{name}, layer {group['name']}, update {t}"
            transitions[i] += round(layer.rate * layer.weight.size)
            talr[i].append(layer.talr)
            largest_running[i] = max(largest_running[i], layer.running)
            error_k = 4 * EPS32 / (1 - oracle.m) * largest_running[i]
            error_u = STEPS * (EPS32 * max(talr[i]) + oracle.eta * (error_k + EPS32 * layer.target))
            assert codes[i] == layer.codes, where
            assert float(group["target_tr"]) == pytest.approx(layer.target, rel=EPS32, abs=0), where
            assert abs(float(group["running_tr"]) - layer.running) <= error_k, where
            assert abs(float(group["talr"]) - layer.talr) <= error_u, where
            assert np.abs(weight_of(group) - layer.weight).max() <= TOLERANCE_W, where

    # The run was worth comparing: transitions, a TALR that moved, no weight near a threshold.
    assert min(transitions) >= 2, transitions
    assert sum(transitions) >= 100, transitions
    assert all(max(values) > 1.3 * min(values) for values in talr)
    assert min(layer.margin for layer in oracle.layers) >= 1.4 * TOLERANCE_W
    if case.saturates:
        zeros = [sum(value == 0.0 for value in values) for values in talr]
        revived = [
            any(a == 0.0 and b > 0.0 for a, b in zip(values, values[1:], strict=False))
            for values in talr
        ]
        assert max(zeros) >= 5, zeros
        assert any(revived), zeros


@pytest.mark.parametrize("name", CASES)
def test_forced_run_updates_weights_exactly(name: str) -> None:
    """With the optimizer's own U the weights agree to 1e-9, each (K, U) follows from the last.

    Both sides are double precision here: 200 updates of a few roundings each. The exception is the
    decay by the TALR: the factor 1 - U * weight_decay is a single precision number, as U is, and
    costs half an eps of the weight at every update, which add up to STEPS of them at most.
    """
    case = CASES[name]
    weights, grads = make_inputs(case.seed)
    oracle = make_naive(case, weights)
    optimizer = build(case, make_tr_groups(weights, torch.float64))
    previous = [(case.lr, 0.0) for _ in LAYERS]
    moved = 0.0
    rounded_decay = oracle.rule.decoupled_decay() > 0 and oracle.decay == "talr"
    largest_weight = max(np.abs(weight).max() for weight in weights)
    for t in range(STEPS):
        step_torch(optimizer, case, t, grads[t])
        shown = [(float(g["talr"]), float(g["running_tr"])) for g in optimizer.param_groups]
        oracle.step(grads[t], lr_at(case, t), forced=shown)
        for i, (group, layer) in enumerate(zip(optimizer.param_groups, oracle.layers, strict=True)):
            where = f"{name}, layer {group['name']}, update {t}"
            largest_weight = max(largest_weight, np.abs(layer.weight).max())
            atol = (t + 1) * EPS32 / 2 * largest_weight if rounded_decay else 1e-10
            np.testing.assert_allclose(
                weight_of(group), layer.weight, rtol=1e-9, atol=atol, err_msg=where
            )
            talr, running = previous[i]
            m, eta = oracle.m, oracle.eta
            new_running = m * running + (1 - m) * layer.rate
            new_talr = max(0.0, talr + eta * (layer.target - shown[i][1]))
            assert shown[i][1] == pytest.approx(new_running, rel=4 * EPS32, abs=1e-12), where
            ulps = 4 * EPS32 * max(talr, new_talr, eta * layer.target, eta * shown[i][1])
            assert abs(shown[i][0] - new_talr) <= ulps, where
            moved = max(moved, abs(shown[i][0] - case.lr))
        previous = shown
    assert moved > 0.3 * case.lr


def test_a_controller_starts_at_the_learning_rate_of_its_group() -> None:
    """K_0 = 0 and U_0 = lr + eta R_0 with eta = lr."""
    case = CASES["sgd"]
    weights, grads = make_inputs(case.seed)
    groups = make_tr_groups(weights, torch.float64)
    for index, group in enumerate(groups):
        group["lr"] = 0.01 * (index + 1)
    optimizer = build(case, groups)
    step_torch(optimizer, case, 0, grads[0])
    for index, (_, bits) in enumerate(LAYERS.values()):
        expected = 0.01 * (index + 1) * (1 + case.settings()["tr_factor"] * math.sqrt(bits))
        talr = optimizer.param_groups[index]["talr"]
        assert float(talr) == pytest.approx(expected, rel=2 * EPS32)
