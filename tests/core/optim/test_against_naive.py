"""The TR-scheduled optimizers against ``naive.py``, a literal Algorithm 1 in double precision.

Three comparisons, because the controller of ``tr_det`` is single precision by design:

*Free run.* Both sides run their own controller for 200 updates. What differs is the rounding of U
and K, bounded below, and the random walk it causes in the weights. The target R and the integer
codes must be equal; that the codes can be equal is no luck: every case asserts that no weight ever
came nearer to a transition point than 1.4 times the tolerance on the weights (the seeds were chosen
for this, by running ``naive.py`` alone).

*Forced run.* The oracle is given the U and K that the optimizer shows. Then nothing but the weight
update is compared, tightly, and the controller is checked one update at a time, to a few ulps.

*Plain.* Groups without a quantizer, and optimizers without any, are torch's bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import naive
import numpy as np
import pytest
import torch
from torch import nn

import tr_det.core
from tr_det.core import build_quantizer

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
PLAIN_KWARGS = {
    "SGDT": {"momentum": 0.9, "weight_decay": 1e-2},
    "AdamT": {"weight_decay": 1e-2},
    "AdamWT": {"weight_decay": 1e-1},
    "NAdamT": {"weight_decay": 1e-2},
    "AdamaxT": {"weight_decay": 1e-2},
    "RMSpropT": {"momentum": 0.9, "weight_decay": 1e-2},
    "AdagradT": {"weight_decay": 1e-2, "lr_decay": 1e-2},
}


@dataclass
class Case:
    """One optimizer with one setting of the controller.

    The settings are not those of a training run (m = 0.99, lambda = 1e-3 would hardly move in 200
    updates of a few dozen weights): they are chosen so that the TALR moves by factors.
    """

    optimizer: str
    rule: naive.NaiveSGD | naive.NaiveAdam
    seed: int
    lr: float
    kwargs: dict = field(default_factory=dict)
    tr_factor: float = 0.05
    tr_momentum: float = 0.9
    gain: float | None = None
    decay: str = "talr"
    tr_final: float = 0.0
    saturates: bool = False

    def tr_kwargs(self) -> dict:
        """Return the arguments of the optimizer."""
        return dict(
            lr=self.lr,
            total_steps=STEPS,
            tr_factor=self.tr_factor,
            tr_momentum=self.tr_momentum,
            tr_gain=self.gain,
            tr_final=self.tr_final,
            **({"tr_decay": self.decay} if self.optimizer == "AdamWT" else {}),
            **self.kwargs,
        )


def _adam(decoupled: bool = False, **kwargs) -> naive.NaiveAdam:
    return naive.NaiveAdam(decoupled=decoupled, **kwargs)


CASES = {
    "sgd": Case("SGDT", naive.NaiveSGD(), 39, 0.02, saturates=True),
    "sgd_momentum": Case("SGDT", naive.NaiveSGD(momentum=0.9), 32, 0.005, {"momentum": 0.9}),
    "sgd_momentum_gain": Case(
        "SGDT",
        naive.NaiveSGD(momentum=0.9),
        41,
        0.02,
        {"momentum": 0.9},
        tr_factor=0.02,
        tr_momentum=0.875,
        gain=0.2,
        saturates=True,
    ),
    "sgd_dampening": Case(
        "SGDT",
        naive.NaiveSGD(momentum=0.8, dampening=0.3),
        47,
        0.01,
        {"momentum": 0.8, "dampening": 0.3},
        tr_final=0.01,
    ),
    "sgd_weight_decay": Case(
        "SGDT", naive.NaiveSGD(weight_decay=0.5), 114, 0.02, {"weight_decay": 0.5}
    ),
    "sgd_nesterov_weight_decay": Case(
        "SGDT",
        naive.NaiveSGD(momentum=0.9, nesterov=True, weight_decay=0.3),
        54,
        0.005,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
    ),
    "sgd_foreach_maximize": Case(
        "SGDT",
        naive.NaiveSGD(momentum=0.9, weight_decay=0.3, maximize=True),
        85,
        0.005,
        {"momentum": 0.9, "weight_decay": 0.3, "maximize": True, "foreach": True},
    ),
    "adam": Case("AdamT", _adam(), 98, 0.01),
    "adam_l2": Case(
        "AdamT",
        _adam(betas=(0.8, 0.95), eps=1e-3, weight_decay=0.5),
        108,
        0.01,
        {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.5},
        gain=0.05,
        saturates=True,
    ),
    "adam_foreach_maximize": Case(
        "AdamT",
        _adam(weight_decay=0.5, maximize=True),
        71,
        0.01,
        {"weight_decay": 0.5, "maximize": True, "foreach": True},
    ),
    "adamw_decay_by_talr": Case(
        "AdamWT",
        _adam(True, weight_decay=0.5),
        80,
        0.01,
        {"weight_decay": 0.5},
        gain=0.05,
        saturates=True,
    ),
    "adamw_decay_by_lr": Case(
        "AdamWT",
        _adam(True, weight_decay=0.5),
        0,
        0.01,
        {"weight_decay": 0.5},
        gain=0.05,
        decay="lr",
        saturates=True,
    ),
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
    return naive.NaiveTR(
        layers,
        case.rule,
        lr=case.lr,
        total_steps=STEPS,
        tr_factor=case.tr_factor,
        tr_momentum=case.tr_momentum,
        gain=case.gain,
        decay=case.decay,
        tr_final=case.tr_final,
    )


def make_quantizer(bits: int) -> nn.Module:
    """Return a signed fixed-grid quantizer with the frozen scale ``SCALE``."""
    quantizer = build_quantizer("fixed_grid", bits, True)
    with torch.no_grad():
        quantizer.scale.fill_(SCALE)
    quantizer.scale.requires_grad_(False)
    return quantizer


def make_tr_groups(weights: list[np.ndarray], dtype: torch.dtype) -> list[dict]:
    """Return one group per layer of ``LAYERS``."""
    groups = []
    for weight, (name, (_, bits)) in zip(weights, LAYERS.items(), strict=True):
        parameter = nn.Parameter(torch.tensor(weight, dtype=dtype))
        groups.append({"params": [parameter], "quantizer": make_quantizer(bits), "name": name})
    return groups


def build(case: Case, groups: list[dict]) -> torch.optim.Optimizer:
    """Return the optimizer of a case."""
    return getattr(tr_det.core, case.optimizer)(groups, **case.tr_kwargs())


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
    oracle = make_naive(case, weights)
    optimizer = build(case, make_tr_groups(weights, dtype))
    transitions = [0] * len(LAYERS)
    talr = [[] for _ in LAYERS]
    largest_running = [0.0] * len(LAYERS)
    for t in range(STEPS):
        codes = step_torch(optimizer, case, t, grads[t])
        oracle.step(grads[t], lr_at(case, t))
        for i, (group, layer) in enumerate(zip(optimizer.param_groups, oracle.layers, strict=True)):
            where = f"{name}, layer {group['name']}, update {t}"
            transitions[i] += round(layer.rate * layer.weight.size)
            talr[i].append(layer.talr)
            largest_running[i] = max(largest_running[i], layer.running)
            error_k = 4 * EPS32 / (1 - case.tr_momentum) * largest_running[i]
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
    rounded_decay = case.rule.decoupled_decay() > 0 and case.decay == "talr"
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
            m, eta = case.tr_momentum, oracle.eta
            new_running = m * running + (1 - m) * layer.rate
            new_talr = max(0.0, talr + eta * (layer.target - shown[i][1]))
            assert shown[i][1] == pytest.approx(new_running, rel=4 * EPS32, abs=1e-12), where
            ulps = 4 * EPS32 * max(talr, new_talr, eta * layer.target, eta * shown[i][1])
            assert abs(shown[i][0] - new_talr) <= ulps, where
            moved = max(moved, abs(shown[i][0] - case.lr))
        previous = shown
    assert moved > 0.3 * case.lr


def test_first_update_counts_no_transition() -> None:
    """K_0 = 0 and U_0 = eta (1 + R_0): there is no update before the first one to compare with."""
    case = CASES["sgd"]
    weights, grads = make_inputs(case.seed)
    optimizer = build(case, make_tr_groups(weights, torch.float64))
    step_torch(optimizer, case, 0, grads[0])
    for group, (_, bits) in zip(optimizer.param_groups, LAYERS.values(), strict=True):
        target = case.tr_factor * math.sqrt(bits)
        assert float(group["running_tr"]) == 0.0
        assert float(group["target_tr"]) == pytest.approx(target, rel=EPS32)
        assert float(group["talr"]) == pytest.approx(case.lr * (1 + target), rel=2 * EPS32)


def test_talr_starts_at_the_lr_of_its_own_group() -> None:
    """U_{-1} = eta = the base LR of the group, where a group has an LR of its own."""
    case = CASES["sgd"]
    weights, grads = make_inputs(case.seed)
    groups = make_tr_groups(weights, torch.float64)
    for index, group in enumerate(groups):
        group["lr"] = 0.01 * (index + 1)
    optimizer = build(case, groups)
    for group, grad in zip(optimizer.param_groups, grads[0], strict=True):
        group["params"][0].grad = torch.tensor(grad)
    optimizer.step()
    for index, (group, (_, bits)) in enumerate(
        zip(optimizer.param_groups, LAYERS.values(), strict=True)
    ):
        expected = 0.01 * (index + 1) * (1 + case.tr_factor * math.sqrt(bits))
        assert float(group["talr"]) == pytest.approx(expected, rel=2 * EPS32)


def test_controller_tensors_are_float32_scalars() -> None:
    """``talr`` and ``running_tr`` are 0-d float32 tensors, with float64 weights too."""
    case = CASES["adam"]
    weights, grads = make_inputs(case.seed)
    optimizer = build(case, make_tr_groups(weights, torch.float64))
    for t in range(3):
        step_torch(optimizer, case, t, grads[t])
        for group in optimizer.param_groups:
            for key in ("talr", "running_tr"):
                assert group[key].shape == ()
                assert group[key].dtype == torch.float32
                assert not group[key].requires_grad


@pytest.mark.parametrize("name", ["sgd_momentum", "adam", "adamw_decay_by_talr"])
def test_tr_groups_ignore_a_rewritten_lr(name: str) -> None:
    """An LR scheduler that rewrites ``group["lr"]`` changes nothing in a TR group."""
    case = CASES[name]
    weights, grads = make_inputs(case.seed)
    runs = []
    for rewrite in (False, True):
        optimizer = build(case, make_tr_groups(weights, torch.float32))
        for t in range(30):
            for group, grad in zip(optimizer.param_groups, grads[t], strict=True):
                group["params"][0].grad = torch.tensor(grad, dtype=torch.float32)
                if rewrite:
                    group["lr"] = 17.0 / (t + 1)
            optimizer.step()
        runs.append(
            [(g["params"][0].detach(), g["talr"], g["running_tr"]) for g in optimizer.param_groups]
        )
    for kept, rewritten in zip(*runs, strict=True):
        for a, b in zip(kept, rewritten, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", PLAIN_KWARGS)
def test_plain_groups_beside_tr_groups_equal_torch_bit_for_bit(name: str) -> None:
    """Groups without a quantizer follow torch exactly, with their own options and a moving LR."""
    kwargs = PLAIN_KWARGS[name]
    weights, grads = make_inputs(3)
    rng = torch.Generator().manual_seed(5)
    shapes = [(7,), (3, 2, 3, 3), (4,)]
    start = [torch.randn(shape, generator=rng) for shape in shapes]

    def plain_groups() -> list[dict]:
        a, b, c = (nn.Parameter(value.clone()) for value in start)
        return [
            {"params": [a, b], "weight_decay": 0.0, "lr": 0.003},
            {"params": [c]},
        ]

    mine, reference = plain_groups(), plain_groups()
    tr_groups = make_tr_groups(weights, torch.float32)
    groups = [tr_groups[0], mine[0], tr_groups[1], tr_groups[2], mine[1], tr_groups[3]]
    ours = getattr(tr_det.core, name)(
        groups, lr=0.01, total_steps=STEPS, tr_factor=0.05, tr_momentum=0.9, **kwargs
    )
    theirs = getattr(torch.optim, name[:-1])(reference, lr=0.01, **kwargs)
    before = [group["params"][0].detach().clone() for group in tr_groups]
    for t in range(50):
        for index in (0, 1):
            for p, q in zip(mine[index]["params"], reference[index]["params"], strict=True):
                p.grad = torch.randn(p.shape, generator=rng)
                q.grad = p.grad.clone()
        for group, grad in zip(tr_groups, grads[t], strict=True):
            group["params"][0].grad = torch.tensor(grad, dtype=torch.float32)
        ours.step()
        theirs.step()
        for index in (0, 1):
            for p, q in zip(mine[index]["params"], reference[index]["params"], strict=True):
                assert torch.equal(p, q), (name, t)
        for position, index in ((1, 0), (4, 1)):
            lr = theirs.param_groups[index]["lr"] * 0.98
            ours.param_groups[position]["lr"] = lr
            theirs.param_groups[index]["lr"] = lr
    assert not any(
        torch.equal(old, group["params"][0]) for old, group in zip(before, tr_groups, strict=True)
    )


UNQUANTIZED = [
    ("SGDT", {}),
    ("SGDT", {"momentum": 0.9, "weight_decay": 1e-3}),
    ("SGDT", {"momentum": 0.9, "dampening": 0.2}),
    ("SGDT", {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "foreach": True}),
    ("SGDT", {"momentum": 0.9, "maximize": True}),
    ("AdamT", {}),
    ("AdamT", {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 1e-2}),
    ("AdamT", {"amsgrad": True, "foreach": True}),
    ("AdamT", {"maximize": True, "amsgrad": True}),
    ("AdamWT", {}),
    ("AdamWT", {"weight_decay": 0.3}),
    ("AdamWT", {"weight_decay": 0.3, "tr_decay": "lr"}),
    ("AdamWT", {"amsgrad": True, "maximize": True, "foreach": True}),
    ("NAdamT", {}),
    ("NAdamT", {"weight_decay": 1e-2, "momentum_decay": 1e-2, "foreach": True}),
    ("NAdamT", {"weight_decay": 1e-2, "decoupled_weight_decay": True}),
    ("AdamaxT", {}),
    ("AdamaxT", {"weight_decay": 1e-2, "maximize": True, "foreach": True}),
    ("RMSpropT", {}),
    ("RMSpropT", {"momentum": 0.9, "centered": True, "weight_decay": 1e-2}),
    ("RMSpropT", {"momentum": 0.9, "alpha": 0.9, "maximize": True, "foreach": True}),
    ("AdagradT", {}),
    ("AdagradT", {"lr_decay": 0.1, "weight_decay": 1e-2, "initial_accumulator_value": 0.2}),
    ("AdagradT", {"maximize": True, "foreach": True}),
]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    UNQUANTIZED,
    ids=[f"{name}-{'-'.join(kwargs) or 'defaults'}" for name, kwargs in UNQUANTIZED],
)
def test_model_without_quantizers_equals_torch_bit_for_bit(name: str, kwargs: dict) -> None:
    """50 updates of a small network; its gradients depend on the weights: differences would grow.

    One parameter goes without a gradient in every third update.
    """

    def train(optimizer_class: type, **options) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(11)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        conv, linear = model[0], model[3]
        groups = [
            {"params": list(conv.parameters())},
            {"params": list(linear.parameters()), "lr": 0.004, "weight_decay": 0.0},
        ]
        optimizer = optimizer_class(groups, lr=0.01, **options)
        history = []
        for t in range(50):
            x = torch.randn(5, 2, 4, 4, generator=generator)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if t % 3 == 2:
                conv.bias.grad = None
            optimizer.step()
            history.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        return history

    reference_kwargs = {key: value for key, value in kwargs.items() if key != "tr_decay"}
    ours = train(getattr(tr_det.core, name), total_steps=50, **kwargs)
    theirs = train(getattr(torch.optim, name[:-1]), **reference_kwargs)
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=f"update {t}")
    assert not torch.equal(ours[0], ours[-1])
