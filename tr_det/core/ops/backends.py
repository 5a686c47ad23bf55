"""What there is to run kernels with."""

from __future__ import annotations

import importlib.util
from functools import cache


@cache
def has_triton() -> bool:
    """Return whether Triton is installed; it comes with torch on Linux."""
    return importlib.util.find_spec("triton") is not None
