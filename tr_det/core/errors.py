"""The error for settings that are not allowed, and checks that raise it."""

from __future__ import annotations

import difflib
import math
from typing import TypeGuard


class ConfigError(ValueError):
    """A setting that is not allowed: its key, its value and what is allowed.

    The core names its own arguments. A config with other names for them (``SOLVER.TR.FACTOR`` for
    ``tr_factor``) raises the same error under its own key, by `renamed`.

    Args:
        key: name of the setting.
        value: what it was given.
        allowed: what it must be, as the end of a sentence: "must be ...".

    >>> print(ConfigError("bits", 9, "an integer from 1 to 8").renamed("MODEL.QUANT.WEIGHT_BITS"))
    MODEL.QUANT.WEIGHT_BITS=9: must be an integer from 1 to 8
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(key, value, allowed)
        self.key, self.value, self.allowed = key, value, allowed

    def __str__(self) -> str:
        """Return the one line that a user sees."""
        return f"{self.key}={self.value!r}: must be {self.allowed}"

    def renamed(self, key: str) -> ConfigError:
        """Return the same error under the name that the user knows."""
        return type(self)(key, self.value, self.allowed)


def check(key: str, value: object, holds: bool, allowed: str) -> None:
    """Raise ConfigError unless ``holds``."""
    if not holds:
        raise ConfigError(key, value, allowed)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number; True and False are none.

    >>> is_number(2), is_number(0.5), is_number(True), is_number(float("inf")), is_number("2")
    (True, True, False, False, False)
    """
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_among(key: str, value: object, names: object) -> None:
    """Raise ConfigError unless the value is one of the names; a near one is suggested."""
    known = sorted(names)  # type: ignore[call-overload]
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(key, value, f"one of {known}{hint}")
