"""The settings of the paper's analyses: which runs a study makes and what it compares."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from tr_det.core.optim.optimizers import OPTIMIZERS
from tr_det.core.transition import AUTO

Settings = dict[str, Any]
"""Dotted config key -> value."""
Group = dict[str, Settings]
"""Label -> settings of runs that are compared with one another."""

LEARNING_RATES = {"SGD": 0.1, "Adagrad": 1e-2}
"""Base learning rates (Table S8 for SGD); 1e-3 for those not named. Adagrad's is our choice."""

SHORT_RUN = {"tr.update": "pi", "tr.momentum": -1}
RULES: dict[str, Settings] = {
    "additive, m = 0.99 (the paper's)": {"tr.update": "additive", "tr.momentum": 0.99},
    "additive, m = 0.9, gain lr / (R_0 T / 20)": {"tr.update": "additive", "tr.momentum": 0.9},
    "multiplicative (S1), m = 0.9": {"tr.update": "multiplicative", "tr.momentum": 0.9},
    "momentum (S2), m = 0.99": {"tr.update": "momentum", "tr.momentum": 0.99},
    "momentum (S2), m = 0.9": {"tr.update": "momentum", "tr.momentum": 0.9},
    "pi (ours), m from the length": SHORT_RUN,
}


def settings(
    optimizer: str = "SGDT", bits: int = 2, more: Mapping[str, Any] | None = None
) -> Settings:
    """Return the settings of a run.

    Args:
        optimizer: one of the classification config's.
        bits: of weights and activations.
        more: what differs from lambda 0.005 and the rule ``pi``, and other keys.
    """
    plain = OPTIMIZERS[optimizer].plain
    return {
        "solver.optimizer": optimizer,
        "solver.lr": LEARNING_RATES.get(plain, 1e-3),
        "solver.weight_decay": 1e-2 if plain == "AdamW" else 1e-4,  # supplement, S2.4
        "quant.bits": f"W{bits}A{bits}",
        "tr.factor": 5e-3,
        **SHORT_RUN,
        **(more or {}),
    }


def groups(study: str, updates: int) -> list[Group]:
    """Return the groups of a study's runs, which are that many updates long."""
    if study != "tracking":
        return STUDIES[study]
    # The gain is the documentation's advice for short runs.
    gain = {"tr.gain": 0.1 / (5e-3 * 2**0.5 * updates / 20)}
    return [
        {
            f"{updates:,} steps: {name}": settings(more=rule | (gain if "gain" in name else {}))
            for name, rule in RULES.items()
        }
    ]


def _paired(bits: int, name: str) -> Group:
    start = f"W{bits}A{bits}, {name}"
    frozen = {"quant.learn_weight_scale": False}
    return {
        start: settings(name, bits),
        f"{start}, weight scales frozen": settings(name, bits, frozen),
        f"{start}T, lambda auto": settings(f"{name}T", bits, {"tr.factor": AUTO}),
        f"{start}T, lambda 0.005": settings(f"{name}T", bits),
    }


def _tuned(bits: int, name: str) -> Group:
    usual = LEARNING_RATES.get(name, 1e-3)
    group: Group = {}
    for times in (0.3, 1, 3, 10):
        more = {"solver.lr": usual * times}
        group[f"W{bits}A{bits}, {name}, lr {usual * times:g}"] = settings(name, bits, more)
    # lr of a TR run is that of the parameters that are not quantized, and where TALR begins.
    tried = [(1, 2e-3), (1, 5e-3), (1, 1e-2), (1, 2e-2)]
    for times, factor in [*tried, (3, 5e-3), (3, 1e-2), (10, 5e-3), (10, 1e-2)]:
        label = f"W{bits}A{bits}, {name}T, lr {usual * times:g}, lambda {factor:g}"
        more = {"solver.lr": usual * times, "tr.factor": factor}
        group[label] = settings(f"{name}T", bits, more)
    return group


def _step_decay(bits: int, name: str) -> Group:
    return {
        f"W{bits}A{bits}, {name}, {schedule}": settings(name, bits, {"solver.schedule": schedule})
        for schedule in ("cosine", "step")
    }


_FACTORS = (1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, AUTO)
_SEVEN = ("SGD", "Adam", "NAdam", "Adamax", "AdamW", "RMSprop", "Adagrad")
_PAIRS = list(itertools.product((2, 1), ("SGD", "Adam")))

STUDIES: dict[str, list[Group]] = {
    "tracking": [],  # the settings depend on the length; see `groups`
    "tr-factor": [
        {
            "SGD": settings("SGD"),
            **{f"SGDT, lambda {f}": settings(more={"tr.factor": f}) for f in _FACTORS},
        }
    ],
    "auto-factor": [
        {
            f"{name}, W{bits}A{bits}, lambda {f}": settings(name, bits, {"tr.factor": f})
            for name, bits in (("SGDT", 1), ("SGDT", 2), ("SGDT", 4), ("AdamT", 2))
            for f in (1e-4, 5e-4, 1e-3, 5e-3, AUTO)
        }
    ],
    "optimizers": [{name: settings(name) for plain in _SEVEN for name in (plain, f"{plain}T")}],
    "final-target": [
        {f"final target {f:g}": settings(more={"tr.final": f}) for f in (0.0, 1e-5, 1e-4, 1e-3)}
    ],
    "update-rules": [
        {
            name: settings(more={"tr.schedule": "step", **rule})
            for name, rule in RULES.items()
            if "gain" not in name
        }
    ],
    "step-decay": [
        _step_decay(bits, f"{name}{suffix}") for bits, name in _PAIRS for suffix in ("", "T")
    ],
    "paired": [_paired(bits, name) for bits, name in _PAIRS],
    "tuned": [_tuned(bits, name) for bits, name in _PAIRS],
}

COMPARED = {"step-decay": "cosine", "paired": "plain"}
"""What the first run of each group is, where the others are compared with it seed by seed."""
