"""Affine maps with the same codes, but with their thresholds in the middle between two sums.

A runtime that rounds otherwise than the reference (fused multiply-add, a product with 1 / step)
moves thresholds by 1e-6 of a code or so. Where a quantizer follows a layer directly, nothing else
depends on the layer's numbers: so they may be any that give the reference's codes, and those are
chosen that leave the most room, if it is enough for such roundings. With 8 bits it rarely is: then
the model's own numbers differ less from what a runtime makes of them.
"""

from __future__ import annotations

import numpy as np

from tr_det.export.graph import Graph
from tr_det.export.staircase import Staircase, staircases

_SEARCH = 60
"""Steps, each of which leaves two thirds of the interval."""

_ENOUGH = 2.0**-21
"""Room, relative to the largest code, that eight roundings of float32 do not use up."""


def steadied(graph: Graph) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return scale and bias, float32, (out,), by the layer's output."""
    return {stairs.layer.output: _steadied(stairs) for stairs in staircases(graph)}


def _steadied(stairs: Staircase) -> tuple[np.ndarray, np.ndarray]:
    grid, layer = stairs.quantize["grid"], stairs.layer
    low, high = stairs.slope * 0.5, stairs.slope * 1.5
    for _ in range(_SEARCH):  # room is concave in the slope
        third = (high - low) / 3
        better = _room(stairs, low + third)[0] < _room(stairs, high - third)[0]
        low, high = np.where(better, low + third, low), np.where(better, high, high - third)
    slope = (low + high) / 2
    room, summand = _room(stairs, slope)
    scale = (stairs.sign * slope * np.float64(grid.step)).astype(np.float32)
    at_zero = (summand - grid.base - grid.add) * np.float64(grid.step) + np.float64(grid.shift)
    bias = np.where(np.isfinite(at_zero), at_zero, layer["bias"]).astype(np.float32)
    sides = stairs.sides()
    same = (stairs.through(sides, scale, bias) == stairs.multiples(sides)).all(1)
    same &= room > _ENOUGH * np.abs(stairs.bounds).max()
    return np.where(same, scale, layer["scale"]), np.where(same, bias, layer["bias"])


def _room(stairs: Staircase, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far thresholds can be from the sums, and the summand for which they are."""
    a = slope[:, None]
    most = (stairs.halves - a * stairs.before).min(1, initial=np.inf)
    least = (stairs.halves - a * stairs.first).max(1, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        return most - least, (most + least) / 2
