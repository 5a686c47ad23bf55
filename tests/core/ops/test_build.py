"""The C kernels are built once and kept; torch operations serve where they cannot be built."""

import logging
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tr_det.core.ops import build as module

COMPILER = module._compiler()
with_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


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


@with_compiler
def test_a_compiler_without_openmp_will_do(tmp_path) -> None:
    """Apple's is one."""
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\ncase " $* " in *" -fopenmp "*) echo "unsupported option" >&2; exit 1;; esac\n'
        f'exec {COMPILER} "$@"\n'
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    assert not module.build(str(compiler), tmp_path / "cache").is_parallel()


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    "fault", ["no compiler", "it fails", "no folder", "no home", "switched off"]
)
def test_without_kernels_torch_operations_serve(
    cache, fault, monkeypatch, caplog, tmp_path
) -> None:
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
    with caplog.at_level(logging.INFO):
        assert module.library() is None
    assert len(caplog.records) == (0 if fault == "switched off" else 1)
    assert not cache.exists() or not list(cache.iterdir())
