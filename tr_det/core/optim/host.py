"""Where a tensor is: what is on the host can be read at once."""

from __future__ import annotations

from torch import Tensor


def is_on_host(tensor: Tensor) -> bool:
    """Return whether reading the tensor's value blocks nothing."""
    return tensor.device.type == "cpu"
