"""Memory for intermediate results that an optimizer keeps from step to step on the host.

There, touching fresh memory costs several times the arithmetic that is done on it. A device's
allocator keeps memory itself, so nothing is held back from the forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Hands out tensors with arbitrary contents."""

    def __init__(self) -> None:
        self._own: dict[tuple[str, Tensor], Tensor] = {}

    def own(self, purpose: str, like: Tensor, owner: Tensor) -> Tensor:
        """Return a tensor like another that no other owner or purpose gets."""
        if like.device.type != "cpu":
            return torch.empty_like(like)
        key = purpose, owner
        if key not in self._own or self._own[key].shape != like.shape:
            self._own[key] = torch.empty_like(like)
        return self._own[key]
