"""Libraries in the cache of compiled kernels."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaigns import tiny
from campaigns.children import in_child
from campaigns.plants import Case, Place

from tr_det.core.ops.build import library

LIMIT = 120.0

_CODE = """
#include <stdlib.h>
__attribute__((constructor)) static void planted(void) { system("touch %s"); }
"""


def cases() -> Iterator[Case]:
    """Yield libraries that stand where the built one should be."""
    for what, change in {
        "in a folder that others can write to": lambda path: path.parent.chmod(0o777),
        "in a folder that a group can write to": lambda path: path.parent.chmod(0o770),
        "that others can write to": lambda path: path.chmod(0o666),
        "of another user's": lambda path: os.chown(path, 65534, 65534),
        "in another user's folder": lambda path: os.chown(path.parent, 65534, 65534),
    }.items():
        if "user" not in what or os.geteuid() == 0:
            yield Case(f"a library {what}", _kernel(change, renamed=True))
    yield Case("a library under the name of the built one", _kernel(lambda _: None, renamed=False))


def _kernel(change: Callable[[Path], Any], renamed: bool) -> Callable[[Place], Callable[[], Any]]:
    """Return what replaces the built library, and changes who may write to it.

    Args:
        change: of the library's path.
        renamed: whether the name, too, is what it would be if this library had been built.
    """

    def plant(place: Place) -> Callable[[], Any]:
        cache = place.folder / "cache"

        def use() -> None:
            os.environ["XDG_CACHE_HOME"] = str(cache)
            library.cache_clear()  # of the process that this one is forked from
            library()

        tiny.require(in_child(use, place.folder / "build", LIMIT))
        (built,) = cache.rglob("*.so")
        source, other = place.folder / "planted.c", place.folder / "planted.so"
        source.write_text(_CODE % place.ran)
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-shared", "-fPIC", source, "-o", other], check=True)
        old, new = (_name_hash(path) for path in (built, other))
        target = built.with_name(built.name.replace(old, new)) if renamed else built
        built.unlink()
        shutil.copy(other, target)
        target.chmod(0o600)
        change(target)
        return use

    return plant


def _name_hash(path: Path) -> str:
    """Return the hash of a library that its name may end with."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
