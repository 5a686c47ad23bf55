"""The C kernels are built once and kept; torch operations serve where they cannot be built."""

import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tr_det.core.ops import backends
from tr_det.core.ops import build as module

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
with_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Build without optimization."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FLAGS", ("-O0", *module.FLAGS[1:]))
        yield


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Ask for the library as a new process with an empty cache does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(module.SWITCH, raising=False)
    module.library.cache_clear()
    yield tmp_path / "cache" / "tr_det"
    module.library.cache_clear()


@with_compiler
def test_built_into_the_cache_once(cache, caplog) -> None:
    with caplog.at_level(logging.INFO):
        assert module.library() is not None
    (built,) = cache.iterdir()
    assert "built " + str(built) in caplog.text
    made = built.stat().st_mtime_ns
    module.library.cache_clear()
    assert module.library() is not None
    assert [p.stat().st_mtime_ns for p in cache.iterdir()] == [made]


@with_compiler
def test_several_may_build_at_once(tmp_path) -> None:
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda _: module.build(COMPILER, tmp_path), range(2)))
    assert all(b is not None for b in built)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def script(tmp_path):
    """Return ``script(text) -> path``: a compiler that is a shell script."""

    def write(text: str) -> str:
        path = tmp_path / "cc"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return write


@with_compiler
def test_a_compiler_without_openmp_will_do(script, tmp_path) -> None:
    """Apple's is one."""
    compiler = script(
        'case " $* " in *" -fopenmp "*) echo "unsupported option" >&2; exit 1;; esac\n'
        f'exec {COMPILER} "$@"'
    )
    assert not module.build(compiler, tmp_path / "cache").is_parallel()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the name of the built kernels and their content."""
    folder = tmp_path_factory.mktemp("kernels")
    module.build(module._compiler(), folder)
    (path,) = folder.iterdir()
    return path.name, path.read_bytes()


def put(folder, built, content) -> Path:
    """Put a file into a cache under the name that the kernels would have with that content."""
    folder.mkdir(mode=0o700, parents=True)
    path = folder / f"{built[0].rpartition('-')[0]}-{module._hash(content)}.so"
    path.write_bytes(content)
    path.chmod(0o600)
    return path


@pytest.fixture
def planted(cache, built, tmp_path):
    """Put a library of somebody else into the cache; return it and the file that it writes."""
    trace, source, library = (tmp_path / name for name in ("ran", "planted.c", "planted.so"))
    source.write_text(
        "#include <fcntl.h>\n"
        f'__attribute__((constructor)) static void run(void) {{ creat("{trace}", 0600); }}\n'
    )
    subprocess.run([COMPILER, "-shared", "-fPIC", source, "-o", library], check=True)
    return put(cache, built, library.read_bytes()), trace


@with_compiler
@pytest.mark.parametrize("fault", ["another user's", "open folder"])
def test_a_folder_that_others_can_write_to_is_not_used(
    planted, cache, fault, monkeypatch, caplog
) -> None:
    if fault == "open folder":
        cache.chmod(0o770)
    else:
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    assert module.library() is None
    assert f"{cache}: must be a folder that belongs to you" in caplog.text
    assert not planted[1].exists()


@with_compiler
@pytest.mark.parametrize("fault", ["open file", "another content"])
def test_a_planted_or_broken_library_is_built_anew(planted, cache, built, fault) -> None:
    path, trace = planted
    if fault == "open file":
        path.chmod(0o620)
    else:
        path.write_bytes(path.read_bytes() + b"!")
    assert module.library() is not None
    assert not trace.exists()
    assert [(p.name, stat.S_IMODE(p.stat().st_mode)) for p in cache.iterdir()] == [
        (built[0], 0o600)
    ]


@with_compiler
def test_a_truncated_library_is_built_anew(cache, built) -> None:
    """Loading one would end the process by SIGBUS."""
    path = put(cache, built, built[1])
    path.write_bytes(built[1][:5000])
    assert module.library() is not None
    assert [p.read_bytes() for p in cache.iterdir()] == [built[1]]


@with_compiler
def test_a_library_that_does_not_load_here_is_built_beside(cache, built) -> None:
    """In a home that several machines share."""
    path = put(cache, built, b"for another machine")
    assert module.library() is not None
    assert {p.name for p in cache.iterdir()} == {path.name, built[0]}


def test_a_relative_cache_is_ignored(monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert module.cache_folder() == Path.home() / ".cache/tr_det"


def test_a_compiler_that_hangs_is_ended_once(script, cache, monkeypatch, caplog, tmp_path) -> None:
    """With what it has started."""
    monkeypatch.setattr(module, "SECONDS", 0.5)
    monkeypatch.setenv("CC", script(f"sleep 100 & echo $! > {tmp_path / 'child'}; wait"))
    start = time.monotonic()
    assert module.library() is None
    assert time.monotonic() - start < 5
    assert "not done after 0.5 seconds" in caplog.text
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}/stat").exists() or _is_dead(child):
            return
        time.sleep(0.02)
    raise AssertionError("its child is still there")


def _is_dead(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_what_a_compiler_says_need_not_be_unicode(script, cache, monkeypatch, caplog) -> None:
    monkeypatch.setenv("CC", script("printf 'na\\357ve option\\nmore' >&2; exit 1"))
    assert module.library() is None
    assert "na\ufffdve option" in caplog.text
    assert "more" not in caplog.text


@with_compiler
def test_a_killed_build_leaves_no_folder(script, cache, tmp_path) -> None:
    """The next start removes what it left, but not what another start is building."""
    program = (
        "import pathlib, runpy, sys; _, file, compiler, folder = sys.argv; "
        "runpy.run_path(file)['build'](compiler, pathlib.Path(folder))"
    )
    compiler = script(f"touch {tmp_path / 'started'}; sleep 3")
    build = subprocess.Popen([sys.executable, "-c", program, module.__file__, compiler, cache])
    while not (tmp_path / "started").exists():
        assert build.poll() is None
        time.sleep(0.02)
    assert module.library() is not None
    assert [path.is_dir() for path in sorted(cache.iterdir())] == [False, True]
    build.kill()
    build.wait()
    module.library.cache_clear()
    assert module.library() is not None
    assert [path.is_dir() for path in cache.iterdir()] == [False]


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    "fault", ["no compiler", "it fails", "no folder", "no home", "switched off"]
)
def test_without_kernels_torch_operations_serve(
    cache, fault, monkeypatch, caplog, tmp_path
) -> None:
    caplog.set_level(logging.WARNING)  # which is visible without any set-up
    if fault == "no compiler":
        monkeypatch.setenv("CC", str(tmp_path / "missing"))
    elif fault == "it fails":
        monkeypatch.setenv("CC", shutil.which("false"))
    elif fault == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    elif fault == "no folder":
        (tmp_path / "cache").write_text("a file in its place")
    else:
        monkeypatch.setenv(module.SWITCH, "0")
    assert module.library() is None
    if fault == "switched off":  # then Triton's are, too
        assert not backends.has_triton.__wrapped__()
    assert len(caplog.records) == (0 if fault == "switched off" else 1)
    assert not cache.exists() or not list(cache.iterdir())
