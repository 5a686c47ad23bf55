"""Integers of 1 to 8 bits, packed as bit planes.

Plane j holds bit j of every number, eight numbers a byte, the first one in the lowest bit. So each
number takes its own bits, up to the last byte, and a runtime unpacks a plane by a shift and an
"and", whatever the number of bits.
"""

from __future__ import annotations

import numpy as np


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Return packed numbers.

    Args:
        numbers: integers from 0 to ``2 ** bits - 1``, n of them in any shape.
        bits: 1 to 8.

    Returns:
        uint8, shape (bits, ceil(n / 8)); the unused bits of the last byte are 0.

    Raises:
        ValueError: bits or a number out of range.

    >>> pack(np.array([0, 1, 2, 3, 3, 3, 3, 3, 1]), 2).tolist()
    [[250, 1], [252, 0]]
    """
    _check(bits)
    flat = np.asarray(numbers).reshape(-1)
    if flat.size and not 0 <= flat.min() <= flat.max() < 1 << bits:
        raise ValueError(
            f"numbers from {flat.min()} to {flat.max()}: must be 0 to {(1 << bits) - 1} "
            f"with {bits} bits"
        )
    planes = flat.astype(np.uint8)[None] >> np.arange(bits, dtype=np.uint8)[:, None]
    return np.packbits(planes & 1, axis=1, bitorder="little")


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the numbers that `pack` was given, uint8, shape (count,).

    Args:
        packed: of `pack`.
        bits: likewise.
        count: of the numbers.

    Raises:
        ValueError: packed is not of that many numbers of that many bits.
    """
    _check(bits)
    shape = (bits, -(-count // 8))
    if packed.dtype != np.uint8 or packed.shape != shape:
        raise ValueError(
            f"packed numbers of {packed.dtype}, shape {packed.shape}: must be uint8, {shape}, for "
            f"{count} numbers of {bits} bits"
        )
    planes = np.unpackbits(packed, axis=1, count=count, bitorder="little")
    numbers = np.zeros(count, np.uint8)
    for j, plane in enumerate(planes):
        numbers |= plane << j
    return numbers


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits={bits!r}: must be 1 to 8")
