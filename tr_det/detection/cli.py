"""How command-line tools report a user's mistakes."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

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
        logging.getLogger("detectron2").debug("Stopped by an error", exc_info=True)
        text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        print(f"error: {' '.join(str(text).split())}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
