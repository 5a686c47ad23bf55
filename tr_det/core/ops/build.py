"""The build of the C kernels at first use, with the machine's own compiler.

It takes half a second and needs no wheel per platform; Triton builds its launchers in the same way.
The compiler is ``$CC``, ``cc``, ``gcc`` or ``clang``; the result is cached in the user's folder.
Without a compiler, or with ``TR_DET_KERNELS=0``, torch operations give the same numbers.

A library runs code when it is loaded. So the cache is used only if the user alone can write to it,
and a library's name ends with the hash of its content: one that is not whole is built anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tr_det.core.ops.backends import SWITCH, kernels_are_off

SOURCE = Path(__file__).with_name("affine.c")
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
"""Time limit of a build, all calls of the compiler together."""

BUILDING = "building-"
"""How the folder of a build in progress is named."""

_log = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """Return the kernels, built now unless cached; None if that is not possible, which is said."""
    if kernels_are_off():
        return None
    try:
        return build(_compiler(), cache_folder())
    except (OSError, RuntimeError, ImportError) as error:  # no home; no locks, as on Windows
        _log.warning(
            "no kernels for the CPU, torch operations are used, which are slower (%s=0 does not "
            "try): %s",
            SWITCH,
            error,
        )
        return None


def cache_folder() -> Path:
    """Return the folder of built kernels: ``$XDG_CACHE_HOME/tr_det`` or ``~/.cache/tr_det``.

    A relative ``$XDG_CACHE_HOME`` would be another folder wherever a run starts: it is ignored.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tr_det"


def build(compiler: str, folder: Path) -> ctypes.CDLL:
    """Return the kernels from a folder, built into it if they are missing.

    Args:
        compiler: a C compiler that takes GCC's options.
        folder: the cache, created if missing. Several processes may build at once.

    Raises:
        OSError: if the folder cannot be written or others can write to it, or if no choice of flags
            gives a loadable library in time.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _is_private(folder.stat()):
        raise OSError(f"{folder}: must be a folder that belongs to you and only you can write to")
    parts = (SOURCE.read_bytes(), compiler.encode(), repr((FLAGS, CHOICES)).encode())
    stem = f"{SOURCE.stem}-{_hash(*parts, platform.machine().encode())}"
    with _alone_or_beside_others(folder):
        return _cached(folder, stem) or _built(compiler, folder, stem)


def _is_private(status: os.stat_result) -> bool:
    """Return whether a file or folder is the user's, and nobody else can write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@contextlib.contextmanager
def _alone_or_beside_others(folder: Path) -> Iterator[None]:
    """Keep others from sweeping the cache; sweep it unless they are busy there.

    What a killed build left is known by that: nobody builds, and it is there.
    """
    import fcntl  # not on Windows

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # others are busy, or the file system has no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.glob(f"{BUILDING}*"):
                shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _cached(folder: Path, stem: str) -> ctypes.CDLL | None:
    """Return the kernels from the cache, None if there are none that load."""
    for path in sorted(folder.glob(f"{stem}-*.so")):
        with contextlib.suppress(OSError):  # built for another machine or torch, or removed by now
            if _is_whole(path):
                return _load(path)
            path.unlink()
    return None


def _is_whole(path: Path) -> bool:
    """Return whether a library is the user's alone, and what was built under its name."""
    with path.open("rb") as file:
        private, content = _is_private(os.fstat(file.fileno())), file.read()
    return private and path.stem.endswith(_hash(content))


def _built(compiler: str, folder: Path, stem: str) -> ctypes.CDLL:
    """Return the kernels, built and put into the cache."""
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=BUILDING, ignore_cleanup_errors=True
    ) as aside:
        kernels, linked = _first_that_loads(compiler, Path(aside))
        linked.chmod(0o600)
        with linked.open("rb+") as file:
            os.fsync(file.fileno())
            path = folder / f"{stem}-{_hash(file.read())}.so"
        os.replace(linked, path)
    _log.info("built %s", path)
    return kernels


def _first_that_loads(compiler: str, folder: Path) -> tuple[ctypes.CDLL, Path]:
    """Return a library built with the first choice of flags that works, loaded, and its path."""
    error, until = OSError("no choice of flags"), time.monotonic() + SECONDS
    for index, choice in enumerate(CHOICES):
        # Separate names: a loader caches what it tried under a name.
        compiled, linked = folder / f"{index}.o", folder / f"{index}.so"
        try:
            _run(until, compiler, *FLAGS, *choice, "-c", str(SOURCE), "-o", str(compiled))
            _run(until, compiler, *_link_flags(), str(compiled), "-lm", "-o", str(linked))
            return _load(linked), linked
        except TimeoutError:
            raise
        except OSError as failure:
            error = failure
    raise error


def _link_flags() -> tuple[str, ...]:
    return (
        ("-dynamiclib", "-undefined", "dynamic_lookup")
        if sys.platform == "darwin"
        else ("-shared",)
    )


def _run(until: float, *command: str) -> None:
    """Run a command; raise OSError with what it said, or that the time is over."""
    # Its words go to a file: a process that it leaves behind could keep a pipe open. In a session
    # of its own, because a compiler is a family of processes.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            status = process.wait(max(0.0, until - time.monotonic()))
        except BaseException as error:
            with contextlib.suppress(OSError):  # they ended meanwhile
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"{command[0]}: not done after {SECONDS} seconds") from None
            raise
        if status:
            said.seek(0)
            first = said.read().decode(errors="replace").strip().partition("\n")[0]
            raise OSError(first or f"{command[0]}: exit status {status}")


def _compiler() -> str:
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError(f"no C compiler ({' or '.join(names)})")
    return found


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
