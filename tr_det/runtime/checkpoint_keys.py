"""Which keys of a checkpoint must be the model's, and what a quantized model may lack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tr_det.runtime.damage import QUANTIZER_STATE

WEIGHT, INPUT, OUTPUT = QUANTIZER_STATE
"""What a full-precision checkpoint lacks."""

LABEL = "quantized: import tr_det.detection before loading"
"""Key of a text among the tensors of a quantized detector (`tr_det.detection.checkpoint.label`)."""


def is_quantizer_state(key: str) -> bool:
    """Return whether a state-dict key belongs to a quantizer or an output scale."""
    return any(kind in f".{key}" for kind in QUANTIZER_STATE)


def quantizer_kinds(keys: Iterable[str]) -> frozenset[str]:
    """Return the kinds of quantizer state that a checkpoint has."""
    dotted = [f".{key}" for key in keys]
    return frozenset(kind for kind in QUANTIZER_STATE if any(kind in key for key in dotted))


def new_keys(incompatible: Any, kinds: frozenset[str]) -> list[str]:
    """Return the quantizer state that a checkpoint lacks and may lack.

    Args:
        incompatible: fvcore's, of a model and a checkpoint.
        kinds: of the quantizer state that the checkpoint has.
    """
    return [key for key in _absent(incompatible) if _may_be_new(key, kinds)]


def wrong_keys(incompatible: Any, kinds: frozenset[str]) -> dict[str, list[str]]:
    """Return the keys that do not fit, by what is wrong; arguments as for `new_keys`."""
    return {
        "missing": [
            key
            for key in _absent(incompatible)
            if not (_may_be_new(key, kinds) or _is_counter(key))
        ],
        "unexpected": [key for key in incompatible.unexpected_keys if not _is_counter(key)],
        "of another shape": [
            f"{key} {tuple(saved)} for {tuple(own)}"
            for key, saved, own in incompatible.incorrect_shapes
        ],
    }


def listed(problems: Mapping[str, list[str]]) -> str:
    """Return the keys of each problem as text."""
    words = [
        f"{len(keys)} {kind} ({shortened(keys, 4)})" for kind, keys in problems.items() if keys
    ]
    return "; ".join(words)


def shortened(keys: list[str], most: int) -> str:
    """Return the first ``most`` keys as text."""
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")


def _absent(incompatible: Any) -> list[str]:
    mis_shaped = {key for key, *_ in incompatible.incorrect_shapes}
    return [key for key in incompatible.missing_keys if key not in mis_shaped]


def _may_be_new(key: str, kinds: frozenset[str]) -> bool:
    """Return whether a checkpoint with quantizer state of some kinds may lack a key.

    Weights or inputs may be quantized later than the others, but all at once; output scales may
    come with either.
    """
    if OUTPUT in f".{key}":
        return OUTPUT not in kinds and not {WEIGHT, INPUT} <= kinds
    return any(kind in f".{key}" and kind not in kinds for kind in (WEIGHT, INPUT))


def _is_counter(key: str) -> bool:
    """Return whether a key is the counter that frozen batch norms lack."""
    return key.endswith(".num_batches_tracked")
