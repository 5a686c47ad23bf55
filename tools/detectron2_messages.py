"""What the user of ``install_detectron2.py`` reads: progress, and errors of one line."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Sequence


class InstallError(Exception):
    """What went wrong, in one line for the user."""


def say(message: str) -> None:
    """Print a progress line at once."""
    print(f"install_detectron2: {message}", flush=True)


def last_line(text: str) -> str:
    """Return the last line that is not blank, or an empty string."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def one_line(error: BaseException) -> str:
    """Return an exception's message in one line, with its class's name."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextlib.contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises inside into an :class:`InstallError` of one line.

    Args:
        what: start of the line.
    """
    try:
        yield
    except InstallError:
        raise
    except Exception as error:
        raise InstallError(f"{what}: {one_line(error)}") from error


def without_password(url: str) -> str:
    """Return an address as it may be shown."""
    return re.sub(r"//[^/@]+@", "//", url)


def run_quietly(command: Sequence[str]) -> None:
    """Run a command; its output is shown, shortened to one line, only if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = last_line(done.stderr) or last_line(done.stdout)
        raise InstallError(f"`{' '.join(command)}` failed: {reason}")
