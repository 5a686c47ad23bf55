"""Which image is in which part: a function of its name and the seed, not of the other images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tr_det.detection.data.prepare.source import Photo


def drawn(names: Sequence[str], share: float, seed: int) -> set[str]:
    """Return a share of names, at least one; most stay drawn when names are added.

    Args:
        names: two or more.
        share: in (0, 1).
        seed: of the draw.

    >>> drawn(["a", "b", "c", "d"], 0.5, seed=0) <= drawn(["a", "b", "c", "d", "e"], 0.6, seed=0)
    True
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    return set(ranked[:count])


def tested_names(
    photos: Sequence[Photo], names: Sequence[str], share: float, seed: int
) -> set[str]:
    """Return the names of the test images.

    They are the source's own test images; without any its validation images; without these a share
    that is drawn.
    """
    for split in ("test", "val"):
        found = {n for photo, n in zip(photos, names, strict=True) if photo.split == split}
        if found:
            return found
    return drawn(names, share, seed)
