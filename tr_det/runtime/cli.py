"""How command-line tools end: on a user's mistakes and on signals.

The predictor does, too, where neither torch nor YAML is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tr_det.runtime.signals import Stopped, ended_by_signals

_LINES = re.DOTALL | re.MULTILINE

USER_ERRORS = (ValueError, OSError, FloatingPointError)
"""What bad input and diverging runs raise; other exceptions are bugs and keep their tracebacks."""

MISTAKE, DIVERGED = 2, 3
"""Exit statuses: what was given cannot be; the run's numbers are no longer finite."""


class UserMistakeError(Exception):
    """A user's mistake on its way from a spawned process to the one that reports it."""


class DivergedError(UserMistakeError):
    """Numbers that are no longer finite, on their way likewise."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error from input into one line on stderr and exit status 2, or 3 where it diverged.

    Signals end the program in a line, too, with status 130 or 143. ``TR_DET_TRACEBACK=1`` shows
    tracebacks instead.
    """
    try:
        with ended_by_signals():
            yield
    except Stopped as stop:
        if wants_traceback():
            raise
        _stop(f"stopped by {stop.signal.name}", stop.code)
    except USER_ERRORS as error:
        if wants_traceback():
            raise
        diverged = isinstance(error, FloatingPointError)
        _stop(f"error: {one_line(error)}", DIVERGED if diverged else MISTAKE)
    except Exception as error:
        if type(error).__name__ != "ProcessRaisedException":  # torch.multiprocessing's
            raise
        # Its text is the other process' traceback, which ends with the error.
        names = f"{UserMistakeError.__name__}|({DivergedError.__name__})"
        found = re.search(rf"(?:{names}): (.*)\s*\Z", str(error))
        if not found:
            raise
        _stop(f"error: {found[2]}", DIVERGED if found[1] else MISTAKE)


@contextmanager
def mistakes_for_parent() -> Iterator[None]:
    """Pass an error from input, in a spawned process, to `one_line_errors` of its parent."""
    try:
        yield
    except USER_ERRORS as error:
        if wants_traceback():
            raise
        kind = DivergedError if isinstance(error, FloatingPointError) else UserMistakeError
        raise kind(one_line(error)) from None


def _stop(line: str, status: Any) -> None:
    print(line, file=sys.stderr)  # noqa: T201
    raise SystemExit(status) from None


def require(what: object, *packages: str, extra: str = "") -> None:
    """Raise ValueError for the first package that is not installed.

    Args:
        what: needs them.
        packages: names under which they are imported.
        extra: of this project, which installs them.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            hint = f"; pip install -e '.[{extra}]'" if extra else ""
            raise ValueError(f"{what}: needs {package}, which is not installed{hint}")


def one_line(error: BaseException) -> str:
    """Return an error's text without its line breaks, the system's as ``FILE: what is wrong``."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    # What a loader's worker process raises has its traceback for a message.
    found = re.match(r"Caught (\w+) in DataLoader worker.*^(?:\w+\.)*\1: (.*)", str(error), _LINES)
    return " ".join((found.group(2) if found else str(error)).split())


def wants_traceback() -> bool:
    """Return whether the user wants to see where errors come from."""
    return bool(os.environ.get("TR_DET_TRACEBACK"))
