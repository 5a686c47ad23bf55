"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
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
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON that every strict parser reads.

    NaN and infinities become null; NumPy's scalars and arrays and tensors become numbers and lists.

    Args:
        path: the file to write or replace.
        value: mappings, sequences, strings, paths, numbers, bools, None and what has ``tolist()``.

    Raises:
        TypeError: a value or key that JSON cannot hold; names its place. The old file is left.
    """
    write_text(path, json.dumps(_plain(value, "$"), indent=2, allow_nan=False) + "\n")


def _plain(obj: Any, where: str) -> Any:
    """Return a value made of plain, finite JSON types."""
    if obj is None or isinstance(obj, (bool, str, int)):
        return obj
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {
            _plain_key(key, where): _plain(value, f"{where}.{key}") for key, value in obj.items()
        }
    if isinstance(obj, (list, tuple)):
        return [_plain(value, f"{where}[{i}]") for i, value in enumerate(obj)]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if hasattr(obj, "tolist"):  # numpy scalars and arrays, tensors
        return _plain(obj.tolist(), where)
    raise TypeError(f"{where} is a {type(obj).__name__}, which JSON can't hold")


def _plain_key(key: Any, where: str) -> str:
    key = key.tolist() if hasattr(key, "tolist") else key
    if isinstance(key, (str, int)) and not isinstance(key, bool):
        return str(key)
    raise TypeError(f"{where} has the key {key!r}; keys are strings or integers")
