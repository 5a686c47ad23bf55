"""How command-line tools report a user's mistakes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import yaml
from torch.multiprocessing import ProcessRaisedException

_LINES = re.DOTALL | re.MULTILINE

USER_ERRORS = (ValueError, OSError, FloatingPointError, yaml.YAMLError)
"""What bad input and diverging runs raise; other exceptions are bugs and keep their tracebacks."""


class UserMistakeError(Exception):
    """A user's mistake on its way from a spawned process to the one that reports it."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error from input into one line on stderr and exit status 2.

    ``TR_DET_TRACEBACK=1`` shows the traceback instead.
    """
    try:
        yield
    except USER_ERRORS as error:
        if _wants_traceback():
            raise
        _stop(_one_line(error))
    except ProcessRaisedException as error:
        # Its text is the other process' traceback, which ends with the error.
        found = re.search(rf"{UserMistakeError.__name__}: (.*)\s*\Z", str(error))
        if not found:
            raise
        _stop(found.group(1))


@contextmanager
def mistakes_for_parent() -> Iterator[None]:
    """Pass an error from input, in a spawned process, to `one_line_errors` of its parent."""
    try:
        yield
    except USER_ERRORS as error:
        if _wants_traceback():
            raise
        raise UserMistakeError(_one_line(error)) from None


def _stop(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)  # noqa: T201
    raise SystemExit(2) from None


def _one_line(error: BaseException) -> str:
    # What a loader's worker process raises has its traceback for a message.
    found = re.match(r"Caught (\w+) in DataLoader worker.*^(?:\w+\.)*\1: (.*)", str(error), _LINES)
    return " ".join((found.group(2) if found else str(error)).split())


def _wants_traceback() -> bool:
    return bool(os.environ.get("TR_DET_TRACEBACK"))
