"""Tests of tools/install_detectron2.py. None needs the network."""

import hashlib
import subprocess
import sys
from pathlib import Path

import detectron2_fetch
import detectron2_fixes
import detectron2_messages
import detectron2_wheel
import install_detectron2 as tool
import pytest

TOOLS = Path(tool.__file__).parent
PARTS = (detectron2_fetch, detectron2_fixes, detectron2_messages, detectron2_wheel)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "find_installed", lambda: None)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that an error prints."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("install_detectron2: error: ")
    return lines[0]


# --- an sdist that cannot be used ----------------------------------------------------------------


@pytest.mark.usefixtures("nothing_installed")
def test_wrong_hash_is_one_line_with_both_hashes(sdist, capsys, monkeypatch):
    monkeypatch.setattr(
        detectron2_wheel, "unpack", lambda *_: pytest.fail("unpacked before verifying")
    )
    assert tool.main(["--sdist", str(sdist)]) == 1
    line = error_line(capsys)
    assert detectron2_fetch.SDIST_SHA256 in line
    assert hashlib.sha256(sdist.read_bytes()).hexdigest() in line


@pytest.mark.usefixtures("nothing_installed")
def test_missing_sdist_is_one_line(tmp_path, capsys):
    assert tool.main(["--sdist", str(tmp_path / "absent.tar.gz")]) == 1
    assert "absent.tar.gz does not exist" in error_line(capsys)


@pytest.mark.usefixtures("nothing_installed")
def test_unreachable_index_is_one_line_without_password(monkeypatch, capsys):
    pytest.importorskip("unearth")
    settings = {"index-url": "http://user:secret@127.0.0.1:9/simple"}
    monkeypatch.setattr(detectron2_fetch, "pip_setting", settings.get)
    assert tool.main([]) == 1
    line = error_line(capsys)
    assert "127.0.0.1:9/simple" in line
    assert "no network" in line
    assert "secret" not in line


# --- what is there already -----------------------------------------------------------------------


def found(monkeypatch, version=None, error=None, location="/env/site-packages/detectron2"):
    installed = tool.Installed(Path(location), version, error)
    monkeypatch.setattr(tool, "find_installed", lambda: installed)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What main() builds and installs, without doing it."""
    calls: list[str] = []

    def install(wheel: Path, leftover: Path | None) -> None:
        calls.append(f"install {wheel}, remove {leftover}")

    def build(*args: object) -> Path:
        calls.append("build")
        return Path("built.whl")

    monkeypatch.setattr(tool, "build_from_sdist", build)
    monkeypatch.setattr(tool, "install", install)
    done = tool.Installed(Path("/env"), tool.WHEEL_VERSION, None)
    monkeypatch.setattr(tool, "check_installed", lambda: done)
    return calls


@pytest.mark.parametrize("version", ["0.6", "0.6+cu118", "0.7", tool.WHEEL_VERSION])
def test_importable_detectron2_is_left_alone(monkeypatch, capsys, built, version):
    found(monkeypatch, version)
    assert tool.main([]) == 0
    assert built == []
    assert f"detectron2 {version} is installed in /env/site-packages" in capsys.readouterr().out


def test_force_replaces_an_importable_detectron2(monkeypatch, built):
    found(monkeypatch, "0.6")
    assert tool.main(["--force"]) == 0
    assert built == ["build", "install built.whl, remove None"]


def test_older_build_of_ours_is_replaced(monkeypatch, built):
    found(monkeypatch, "0.6+trdet0")
    assert tool.main([]) == 0
    assert built[0] == "build"


def test_broken_foreign_detectron2_is_an_error(monkeypatch, capsys, built):
    found(monkeypatch, "0.6", error="ImportError: no _C")
    assert tool.main([]) == 1
    assert "--force replaces it" in error_line(capsys)
    assert built == []


def test_half_installed_detectron2_is_replaced(monkeypatch, built):
    found(monkeypatch, None, error="ImportError: no module named layers")
    assert tool.main([]) == 0
    assert built == ["build", "install built.whl, remove /env/site-packages/detectron2"]


def test_probe_finds_a_package_and_why_it_does_not_import(monkeypatch, tmp_path):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "engine.py").write_text("raise ImportError('old Pillow')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    installed = tool.find_installed()
    assert installed is not None
    assert installed.location == package
    assert installed.error == "ImportError: old Pillow"


# --- the built wheel and the script --------------------------------------------------------------


def test_keep_leaves_no_part_behind(tmp_path):
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"wheel")
    kept = tool.keep(wheel, tmp_path / "new" / "dir")
    assert kept.read_bytes() == b"wheel"
    assert [path.name for path in kept.parent.iterdir()] == ["a.whl"]


def test_command_line_help_needs_no_package(tmp_path):
    """The script starts in any folder, with nothing but the standard library."""
    command = [sys.executable, "-S", str(TOOLS / "install_detectron2.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--from-git" in done.stdout


def test_script_and_its_parts_are_the_ones_of_this_checkout():
    root = Path(__file__).resolve().parents[2]
    assert root / "tools" == TOOLS.resolve()
    assert {Path(part.__file__).resolve().parent for part in PARTS} == {root / "tools"}


def test_bootstrap_installs_again_when_a_part_changes():
    hashed = (TOOLS / "bootstrap.sh").read_text(encoding="utf-8")
    parts = {Path(part.__file__).name for part in PARTS}
    assert parts == {path.name for path in TOOLS.glob("detectron2_*.py")}
    assert all(f"tools/{name}" in hashed for name in (*parts, "install_detectron2.py"))
