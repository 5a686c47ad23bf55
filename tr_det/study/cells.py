"""Cells of a study: ordinary runs, told apart by what their configs set."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tr_det.runtime.configs import leaves
from tr_det.study.reading import with_names
from tr_det.study.sides import SIDES, Side, plain

ROW, RUN, CANDIDATE = "row", "run", "candidate"
"""Kinds of cells: of the table; those that rows start from or read; those of a search."""

_LONGEST = 80


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        kind: what it is for.
        labels: axis -> label; of a supporting run its name under "run".
        seed: of the run.
        side: of the study.
        config: file that it is made from.
        settings: dotted key -> value on top of it, with ``{name}`` for folders of ``needs``.
        needs: runs that must have ended before, by name.
    """

    kind: str
    labels: Mapping[str, str]
    seed: int
    side: str
    config: Path
    settings: Mapping[str, Any]
    needs: Mapping[str, Cell] = field(default_factory=dict)

    @functools.cached_property
    def identity(self) -> str:
        """Ten digits that differ where anything that changes a number does."""
        side = SIDES[self.side]
        own = with_names(self.settings, lambda name: self.needs[name].identity)
        keys = {**_written(side, self.config), **own, side.seed: self.seed}
        told = {key: plain(value) for key, value in keys.items() if key not in side.free}
        text = json.dumps([self.side, told], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def sets(self, key: str) -> bool:
        """Return whether the run's config file, or the study, sets a dotted key."""
        return key in self.settings or key in _written(SIDES[self.side], self.config)

    @functools.cached_property
    def name(self) -> str:
        """Name of its folder, unless one was made when its labels were others."""
        words = [*self.labels.values(), f"seed{self.seed}"]
        words = words if self.kind == ROW else [self.kind, *words]
        text = "_".join(re.sub(r"[^\w.+-]+", "-", word).strip("-") for word in words)
        return f"{text[:_LONGEST]}_{self.identity}"

    def folder(self, study: Path) -> Path:
        """Return its folder.

        Args:
            study: the study's folder.
        """
        return next(iter(sorted(study.glob(f"*_{self.identity}"))), study / self.name)

    def pairs(self, study: Path) -> list[str]:
        """Return the ``KEY VALUE`` words that start the run.

        Args:
            study: the study's folder.
        """
        side = SIDES[self.side]
        own = with_names(self.settings, lambda name: str(self.needs[name].folder(study)))
        own |= {side.seed: self.seed, side.folder: str(self.folder(study))}
        return side.pairs(own)


@functools.cache
def _written(side: Side, path: Path) -> dict[str, Any]:
    return {key: value for key, value in leaves(side.written(path)) if value != {}}
