"""How command-line tools report a user's mistakes."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

_LOGGER = "detectron2"

USER_ERRORS = (ValueError, KeyError, OSError, json.JSONDecodeError, yaml.YAMLError, AssertionError)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error from input into one line on stderr and exit status 2.

    The traceback goes to the log file, if logging has been set up, and to stderr with
    ``TR_DET_TRACEBACK=1``.
    """
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("TR_DET_TRACEBACK"):
            raise
        _log_to_files(error)
        text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        print(f"error: {' '.join(str(text).split())}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def _log_to_files(error: BaseException) -> None:
    """Write the traceback to the log files; Detectron2's console handler would show it as well."""
    record = logging.LogRecord(_LOGGER, logging.ERROR, __file__, 0, "Stopped by an error", (), None)
    record.exc_info = (type(error), error, error.__traceback__)
    for handler in logging.getLogger(_LOGGER).handlers:
        # Both kinds are StreamHandlers; a file's stream is named by its path.
        stream = getattr(handler, "stream", None)
        name = getattr(stream, "name", "")
        if isinstance(name, str) and os.path.isfile(name) and not stream.closed:
            handler.handle(record)
