"""The installer of Detectron2. No test needs the network."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from install import detectron2 as tool
from install.fixes import FIXES

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def found(monkeypatch):
    """Return ``found(version, error)``, which sets what is installed; at first nothing is."""

    def make(*what):
        installed = tool.Installed(Path("/env/site-packages/detectron2"), *what) if what else None
        monkeypatch.setattr(tool, "find_installed", lambda: installed)

    make()
    return make


@pytest.fixture
def built(monkeypatch, found):
    """The list of what main() builds and installs, without doing it."""
    calls = []

    def install(source):
        calls.append(source)
        found(tool.VERSION, None)

    monkeypatch.setattr(tool, "fetch_sdist", lambda folder: folder / "sdist.tar.gz")
    monkeypatch.setattr(tool, "patched_source", lambda sdist, folder: "patched")
    monkeypatch.setattr(tool, "install", install)
    return calls


def error_line(capsys):
    """Return the one line that an error prints."""
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("tools/install/detectron2.py: error: ")
    return line


def test_a_wrong_hash_is_one_line_with_both_hashes(found, sdist, capsys, monkeypatch):
    monkeypatch.setattr("shutil.unpack_archive", lambda *_: pytest.fail("unpacked unverified"))
    assert tool.main(["--sdist", str(sdist)]) == 1
    line = error_line(capsys)
    assert tool.SDIST_SHA256 in line
    assert hashlib.sha256(sdist.read_bytes()).hexdigest() in line


def test_a_missing_sdist_is_one_line(found, tmp_path, capsys):
    assert tool.main(["--sdist", str(tmp_path / "absent.tar.gz")]) == 1
    assert "absent.tar.gz" in error_line(capsys)


@pytest.mark.parametrize("index", ["http://user:secret@127.0.0.1:9/simple", ""])
def test_an_sdist_that_cannot_be_fetched_is_one_line(found, monkeypatch, capsys, index):
    pytest.importorskip("unearth")
    settings = {"index-url": index, "no-index": "" if index else "1"}
    monkeypatch.setattr(tool, "pip_setting", lambda name: settings.get(name, ""))
    assert tool.main([]) == 1
    line = error_line(capsys)
    assert "cannot fetch pb1-detectron2==0.6" in line
    assert "secret" not in line


def test_the_source_is_patched(sdist, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SDIST_SHA256", hashlib.sha256(sdist.read_bytes()).hexdigest())
    source = tool.patched_source(sdist, tmp_path / "source")
    for fix in FIXES:
        assert fix.name in (source / "FIXES.txt").read_text()
        for edit in fix.edits:
            assert edit.new in (source / "detectron2" / edit.path).read_text()
    compile((source / "setup.py").read_text(), "setup.py", "exec")


@pytest.mark.parametrize("version", ["0.6", "0.6+cu118", "0.7", tool.VERSION])
def test_a_detectron2_that_imports_is_left_alone(found, capsys, built, version):
    found(version, None)
    assert tool.main([]) == 0
    assert built == []
    assert f"detectron2 {version} is installed in /env/site-packages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "version", "error", "source"),
    [
        (["--force"], "0.6", None, "patched"),
        ([], "0.6+trdet0", None, "patched"),
        ([], tool.VERSION, "ImportError: no module named layers", "patched"),
        ([], None, "ImportError: no module named layers", "patched"),
        (["--force", "--from-git", "main"], "0.6", None, f"git+{tool.REPOSITORY}@main"),
    ],
)
def test_a_detectron2_is_replaced(found, built, arguments, version, error, source):
    found(version, error)
    assert tool.main(arguments) == 0
    assert built == [source]


def test_a_foreign_detectron2_that_does_not_import_is_an_error(found, capsys, built):
    found("0.6", "ImportError: no _C")
    assert tool.main([]) == 1
    assert "--force replaces it" in error_line(capsys)
    assert built == []


def test_the_probe_finds_a_package_and_why_it_does_not_import(monkeypatch, tmp_path):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "engine.py").write_text("raise ImportError('old Pillow')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    installed = tool.find_installed()
    assert installed.location == package
    assert installed.error == "ImportError: old Pillow"


def test_the_index_follows_pips_environment(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.example/simple https://b.example/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    sites = [f"https://{site}.example/simple" for site in ("mirror", "a", "b")]
    assert tool.index_urls() == sites
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert tool.index_urls() == []


def test_the_index_follows_pips_configuration_file(monkeypatch, tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://configured.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    tool.pip_configuration.cache_clear()
    assert tool.pip_setting("index-url") == "https://configured.example/simple"
    tool.pip_configuration.cache_clear()


def test_the_sdist_is_fetched_from_find_links(monkeypatch, sdist, tmp_path):
    pytest.importorskip("unearth")
    settings = {"no-index": "1", "find-links": str(sdist.parent)}
    monkeypatch.setattr(tool, "pip_setting", lambda name: settings.get(name, ""))
    target = tmp_path / "download"
    target.mkdir()
    assert tool.fetch_sdist(target).read_bytes() == sdist.read_bytes()


def test_help_needs_no_package(tmp_path):
    """The script starts in any folder, with nothing but the standard library."""
    command = [sys.executable, "-S", str(ROOT / "tools/install/detectron2.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--from-git" in done.stdout
