"""Small changes to values, trees and bytes, of the kinds that hands, tools and disks make."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

NASTY: tuple[Any, ...] = (
    *(None, True, False, "", "x", "nan", "1", " ", "\u00e9", "${x}", "???"),
    *(0, 1, -1, 2, 3, 7, 9, 100, -100, 2**31, 2**63, -(2**63), 10**30),
    *(0.0, 0.5, -0.5, 1.5, 1e-12, 1e12, -1e12, float("nan"), float("inf"), float("-inf")),
    *([], [0], [-1], [1, 2], ["x"], [None], [[]], [float("nan")], {}, {"x": 1}),
)
_LIMITS = ("nan", "inf", "-inf")


def other_value(value: Any, rng: random.Random, pool: tuple[Any, ...] = NASTY) -> Any:
    """Return something else in the place of a value: any, or one near it."""
    if rng.random() < 0.5:
        return copy.deepcopy(rng.choice(pool))
    if isinstance(value, bool):
        return rng.choice((not value, int(value), str(value), None))
    if isinstance(value, int | float):
        choices = (-value, 0, value * 10, value / 10, value + 0.5, str(value), [value], -1)
        return rng.choice(choices)
    if isinstance(value, str):
        return rng.choice((value + "x", value[:-1], value.upper(), [value], value * 2))
    if isinstance(value, list | tuple) and value:
        items = list(copy.deepcopy(value))
        place = rng.randrange(len(items))
        change = rng.randrange(4)
        if change == 0:
            del items[place]
        elif change == 1:
            items.insert(place, copy.deepcopy(items[place]))
        elif change == 2:
            items[place] = other_value(items[place], rng, pool)
        else:
            items = [other_value(item, rng, pool) for item in items]
        return items
    return copy.deepcopy(rng.choice(pool))


def alike(value: Any, rng: random.Random) -> Any:
    """Return another value of the same type, which a check of types lets through."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((-value, -1, 0, 1, 2, 3, 5, 9, 31, 64, value + 1, value - 1, 2 * value))
    if isinstance(value, float):
        near = (-value, value / 10, value * 10)
        return rng.choice((*near, -1.0, 0.0, 1e-12, 0.3, 1.0, 2.0, 100.0, *map(float, _LIMITS)))
    if isinstance(value, list | tuple) and value:
        items = list(value)
        place = rng.randrange(len(items))
        change = rng.randrange(5)
        if change == 0:
            return items[:place] + items[place + 1 :]
        if change == 1:
            return items[: place + 1] + items[place:]
        if change == 2:
            return items[::-1]
        items[place] = alike(items[place], rng)
        return items
    return other_value(value, rng)


def changed_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return what was done to a file's bytes, and the bytes."""
    kinds: dict[str, Callable[[], bytes]] = {
        "cut short": lambda: data[: rng.randrange(len(data))],
        "a bit flipped": lambda: _flipped(data, rng, 1),
        "eight bits flipped": lambda: _flipped(data, rng, 8),
        "a block of zeros": lambda: _block(data, rng, lambda size: bytes(size)),
        "a block of noise": lambda: _block(data, rng, rng.randbytes),
        "a block left out": lambda: _block(data, rng, lambda size: b""),
        "more at its end": lambda: data + rng.randbytes(rng.randint(1, 100)),
        "twice": lambda: data + data,
        "empty": lambda: b"",
        "noise": lambda: rng.randbytes(rng.randint(1, 5000)),
    }
    weights = [4, 4, 2, 2, 2, 2, 1, 1, 1, 1]
    kind = rng.choices(list(kinds), weights)[0]
    return kind, kinds[kind]()


def _flipped(data: bytes, rng: random.Random, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _block(data: bytes, rng: random.Random, new: Callable[[int], bytes]) -> bytes:
    start = rng.randrange(len(data))
    size = min(len(data) - start, rng.choice((1, 16, 512, 4096)))
    return data[:start] + new(size) + data[start + size :]
