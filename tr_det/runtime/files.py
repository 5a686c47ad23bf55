"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new name beside a path; what is written there replaces it if the block succeeds.

    The old file stays whole until the new one is on disk, and a failing block leaves neither a new
    file nor a temporary one.

    Args:
        path: the file to replace. Its folder is made when missing.

    Yields:
        A path in the same folder and with the same suffix, which does not exist yet.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason of the system.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        full = _why_full(aside)
        with contextlib.suppress(OSError):
            aside.unlink()
        if isinstance(error, Exception) and full:
            raise OSError(full.errno, full.strerror, os.fspath(path)) from None
        raise


def require_writable(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether its result can be written.

    Args:
        path: a file to write or replace later.

    Raises:
        OSError: files cannot be made in its folder or, where that is missing, in the nearest one
            above; or the path is a folder.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    folder = next(above for above in Path(path).absolute().parents if above.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(folder)) from None


def _why_full(path: Path) -> OSError | None:
    """Return the system's error if a file can grow no more.

    Libraries turn it into errors of their own, or raise it without the name of the file.
    """
    try:
        with path.open("ab") as file:
            file.write(bytes(2**16))
    except OSError as error:
        return error
    return None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: it is damaged, or no JSON, with its name.
        OSError: it cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: damaged, or no JSON ({error})") from None


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON that every strict parser reads.

    NaN and infinities become null; NumPy's scalars and arrays and tensors become numbers and lists.

    Args:
        path: the file to write or replace.
        value: mappings, sequences, strings, paths, numbers, bools, None and what has ``tolist()``.

    Raises:
        TypeError: a value that JSON cannot hold. The old file is left.
    """
    write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Return a value made of plain, finite JSON types, where it has any."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
