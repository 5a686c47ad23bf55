"""The build of the C kernels at first use, with the machine's own compiler.

It takes half a second and needs no wheel per platform; Triton builds its launchers in the same way.
The compiler is ``$CC``, ``cc``, ``gcc`` or ``clang``; the result is cached in the user's folder.
Without a compiler, or with ``TR_DET_COMPILE=0``, torch operations give the same numbers.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("affine.c")
SWITCH = "TR_DET_COMPILE"
FLAGS = (
    "-O3",
    "-fPIC",
    "-std=gnu11",
    "-ffp-contract=off",  # a fused multiply-add would round differently from torch
    "-fno-math-errno",  # lets rintf become an instruction
    "-fno-trapping-math",
)
# OpenMP is not named to the linker, so that the kernels use the library that torch has loaded: a
# second one would run its own threads in competition with torch's.
CHOICES: tuple[tuple[str, ...], ...] = (
    ("-fopenmp",),
    ("-fopenmp", "-DNO_CLONES"),
    (),
    ("-DNO_CLONES",),
)
SECONDS = 60
"""Time limit of a compiler call."""

_log = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """Return the kernels, built now unless cached; None if that is not possible."""
    if os.environ.get(SWITCH, "1") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        _log.info("no C compiler: quantization on the CPU uses torch operations, which are slower")
        return None
    try:
        return build(compiler, cache_folder())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # no home: RuntimeError
        detail = getattr(error, "stderr", None) or error
        _log.info(
            "kernels for the CPU could not be built, torch operations are used, which are slower "
            "(%s=0 does not try): %s",
            SWITCH,
            str(detail).strip().partition("\n")[0],
        )
        return None


def cache_folder() -> Path:
    """Return the folder of built kernels: ``$XDG_CACHE_HOME/tr_det`` or ``~/.cache/tr_det``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tr_det"


def build(compiler: str, folder: Path) -> ctypes.CDLL:
    """Return the kernels from a folder, built into it if they are missing.

    Args:
        compiler: a C compiler that takes GCC's options.
        folder: the cache, created if missing. Several processes may build at once.

    Raises:
        OSError: if the folder cannot be written or no choice of flags gives a loadable library.
        subprocess.SubprocessError: if the compiler fails with every choice.
    """
    parts = (SOURCE.read_bytes(), compiler.encode(), repr((FLAGS, CHOICES)).encode())
    digest = hashlib.sha256(b"\0".join((*parts, platform.machine().encode()))).hexdigest()[:16]
    path = folder / f"{SOURCE.stem}-{digest}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            os.replace(_first_that_loads(compiler, Path(aside)), path)
        _log.info("built %s", path)
    return _load(path)


def _first_that_loads(compiler: str, folder: Path) -> Path:
    """Return a library built with the first choice of flags that works."""
    error: Exception = OSError("no choice of flags")
    for index, choice in enumerate(CHOICES):
        # Separate names: a loader caches what it tried under a name.
        compiled, linked = folder / f"{index}.o", folder / f"{index}.so"
        try:
            _run(compiler, *FLAGS, *choice, "-c", str(SOURCE), "-o", str(compiled))
            _run(compiler, *_link_flags(), str(compiled), "-lm", "-o", str(linked))
            _load(linked)
        except (OSError, subprocess.SubprocessError) as failure:
            error = failure
            continue
        return linked
    raise error


def _link_flags() -> tuple[str, ...]:
    return (
        ("-dynamiclib", "-undefined", "dynamic_lookup")
        if sys.platform == "darwin"
        else ("-shared",)
    )


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)


def _compiler() -> str | None:
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    return next((found for name in names if (found := shutil.which(name))), None)


def _load(path: Path) -> ctypes.CDLL:
    kernels = ctypes.CDLL(str(path))
    pointer, size, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    shared = (pointer, pointer, size, size, size, pointer, integer)  # scale, ..., grid, threads
    kernels.quantize.argtypes = [pointer, pointer, *shared]
    kernels.gradient.argtypes = [pointer, pointer, pointer, pointer, *shared]
    kernels.recode.argtypes = [pointer, pointer, *shared]
    kernels.recode.restype = size
    kernels.fingerprint.argtypes = [pointer, size]
    kernels.fingerprint.restype = ctypes.c_uint64
    for function in (kernels.quantize, kernels.gradient):
        function.restype = None
    return kernels
