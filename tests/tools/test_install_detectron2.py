"""Tests of tools/install_detectron2.py and of the table of fixes. None needs the network."""

import hashlib
import importlib.metadata
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import detectron2_fixes
import install_detectron2 as tool
import pytest
from detectron2_fixes import FIXES, Edit, Fix

TOOLS = Path(tool.__file__).parent
TOP = "pb1-detectron2-0.6"


def tar_of(path: Path, files: dict[str, str], extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    """Write a gzipped tar of text files and of other members."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for member in extra:
            tar.addfile(member)
    return path


def fake_source() -> dict[str, str]:
    """Return a tree in which every fix matches, and little else."""
    wanted: dict[str, list[str]] = {}
    for fix in FIXES:
        for edit in fix.edits:
            wanted.setdefault(edit.path, []).extend([edit.old] * edit.count)
    # Each old text becomes a string literal: the mended files still parse, whatever the fix says.
    files = {path: "\n".join(texts) for path, texts in wanted.items()}
    files = {path: f"TEXT = '''\n{text}\n'''\n" for path, text in files.items()}
    files |= {
        "detectron2/__init__.py": '__version__ = "0.6"\n',
        "detectron2/projects/__init__.py": "",
        "detectron2/layers/csrc/vision.cpp": "int main() {}\n",
        "detectron2/model_zoo/configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml": "MODEL: {}\n",
        "projects/DeepLab/deeplab/__init__.py": "",
        "tests/test_boxes.py": "",
        "LICENSE": "Apache License\n",
    }
    return files


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    """An sdist of the fake tree."""
    files = {f"{TOP}/{name}": text for name, text in fake_source().items()}
    return tar_of(tmp_path / f"{TOP}.tar.gz", files)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "find_installed", lambda: None)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that an error prints."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("install_detectron2: error: ")
    return lines[0]


# --- hash ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_installed")
def test_wrong_hash_is_one_line_with_both_hashes(sdist, capsys, monkeypatch):
    monkeypatch.setattr(tool, "unpack", lambda *_: pytest.fail("unpacked before verifying"))
    assert tool.main(["--sdist", str(sdist)]) == 1
    line = error_line(capsys)
    assert tool.SDIST_SHA256 in line
    assert hashlib.sha256(sdist.read_bytes()).hexdigest() in line


def test_right_hash_passes(sdist):
    tool.verify_hash(sdist, hashlib.sha256(sdist.read_bytes()).hexdigest())


@pytest.mark.usefixtures("nothing_installed")
def test_missing_sdist_is_one_line(tmp_path, capsys):
    assert tool.main(["--sdist", str(tmp_path / "absent.tar.gz")]) == 1
    assert "absent.tar.gz does not exist" in error_line(capsys)


# --- fetching -----------------------------------------------------------------------------------


@pytest.fixture
def no_pip_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "pip_setting", lambda _: None)


@pytest.mark.usefixtures("no_pip_settings")
def test_index_is_pypi_by_default():
    assert tool.index_urls() == ["https://pypi.org/simple/"]


def test_index_follows_pips_environment(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.example/simple https://b.example/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    assert tool.index_urls() == [
        "https://mirror.example/simple",
        "https://a.example/simple",
        "https://b.example/simple",
    ]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert tool.index_urls() == []


@pytest.fixture
def fresh_pip_configuration() -> Iterator[None]:
    tool.pip_configuration.cache_clear()
    yield
    tool.pip_configuration.cache_clear()


@pytest.mark.usefixtures("fresh_pip_configuration")
def test_index_follows_pips_configuration_file(monkeypatch, tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://configured.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    assert tool.pip_setting("index-url") == "https://configured.example/simple"


@pytest.mark.usefixtures("nothing_installed")
def test_unreachable_index_is_one_line_without_password(monkeypatch, capsys):
    pytest.importorskip("unearth")
    settings = {"index-url": "http://user:secret@127.0.0.1:9/simple"}
    monkeypatch.setattr(tool, "pip_setting", settings.get)
    assert tool.main([]) == 1
    line = error_line(capsys)
    assert "127.0.0.1:9/simple" in line
    assert "no network" in line
    assert "secret" not in line


def test_sdist_is_fetched_from_find_links(monkeypatch, sdist, tmp_path):
    pytest.importorskip("unearth")
    settings = {"no-index": "1", "find-links": str(sdist.parent)}
    monkeypatch.setattr(tool, "pip_setting", settings.get)
    target = tmp_path / "download"
    target.mkdir()
    assert tool.fetch_sdist(target).read_bytes() == sdist.read_bytes()


# --- unpacking ----------------------------------------------------------------------------------


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("name", ["../evil.py", f"{TOP}/../../evil.py", "/tmp/evil.py", "a\\..\\b"])
def test_unpack_refuses_to_leave_its_folder(tmp_path, name):
    inside = tmp_path / "inside" / "deep"
    inside.mkdir(parents=True)
    archive = tar_of(tmp_path / "bad.tar.gz", {f"{TOP}/a.py": "", name: "evil"})
    with pytest.raises(tool.InstallError, match="refusing to unpack"):
        tool.unpack(archive, inside)
    assert not list(tmp_path.rglob("evil.py"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_unpack_refuses_links_and_devices(tmp_path, kind):
    odd = member(f"{TOP}/odd", kind, "/etc/passwd")
    archive = tar_of(tmp_path / "bad.tar.gz", {f"{TOP}/a.py": ""}, (odd,))
    with pytest.raises(tool.InstallError, match="no file or folder"):
        tool.unpack(archive, tmp_path / "out")


def test_unpack_refuses_two_top_folders_and_broken_files(tmp_path):
    archive = tar_of(tmp_path / "two.tar.gz", {"a/x.py": "", "b/x.py": ""})
    with pytest.raises(tool.InstallError, match="should hold one folder"):
        tool.unpack(archive, tmp_path / "out")
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(tool.InstallError, match="cannot unpack broken.tar.gz"):
        tool.unpack(broken, tmp_path / "out2")


# --- fixes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nothing of it\n", "old\nold\n"])
def test_fix_that_does_not_match_names_file_and_fix(tmp_path, text):
    (tmp_path / "module.py").write_text(text)
    fix = Fix("some-fix", "why", "0" * 40, (Edit("module.py", "old", "new"),))
    with pytest.raises(tool.InstallError, match=r"fix some-fix: module\.py .* expected 1"):
        tool.apply_fixes(tmp_path, [fix])
    assert (tmp_path / "module.py").read_text() == text


def test_fix_of_a_file_that_is_gone_names_it(tmp_path):
    fix = Fix("some-fix", "why", "0" * 40, (Edit("gone.py", "old", "new"),))
    with pytest.raises(tool.InstallError, match=r"some-fix: gone\.py does not exist"):
        tool.apply_fixes(tmp_path, [fix])


def test_fix_replaces_the_stated_number_of_times(tmp_path):
    (tmp_path / "module.py").write_text("a = np.int\nb = np.int\n")
    fix = Fix("some-fix", "why", "0" * 40, (Edit("module.py", "np.int", "int", count=2),))
    tool.apply_fixes(tmp_path, [fix])
    assert (tmp_path / "module.py").read_text() == "a = int\nb = int\n"


@pytest.mark.parametrize("fix", FIXES, ids=lambda fix: fix.name)
def test_every_fix_has_a_reason_and_an_upstream_reference(fix):
    assert fix.why
    assert fix.edits
    assert re.fullmatch(
        r"https://github\.com/facebookresearch/detectron2/(commit/[0-9a-f]{40}|pull/\d+)",
        fix.reference,
    )
    for edit in fix.edits:
        assert edit.path.startswith("detectron2/")
        assert edit.old != edit.new
        assert edit.count >= 1


def test_names_of_fixes_are_unique():
    names = [fix.name for fix in FIXES]
    assert len(set(names)) == len(names)


def test_a_fix_that_breaks_a_file_is_noticed(tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(tool.InstallError, match=r"broken\.py"):
        tool.check_syntax(tmp_path)


# --- the wheel ----------------------------------------------------------------------------------


@pytest.fixture
def wheel(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> zipfile.ZipFile:
    """The wheel of the fake tree."""
    pytest.importorskip("wheel")
    monkeypatch.setattr(tool, "SDIST_SHA256", hashlib.sha256(sdist.read_bytes()).hexdigest())
    path = tool.build_from_sdist(tmp_path / "work", sdist)
    assert path.name == f"detectron2-{tool.WHEEL_VERSION}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_wheel_holds_the_package_its_projects_and_configs(wheel):
    names = set(wheel.namelist())
    assert "detectron2/__init__.py" in names
    assert "detectron2/projects/deeplab/__init__.py" in names
    assert "detectron2/model_zoo/configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml" in names
    assert not [name for name in names if "csrc" in name or name.startswith(("tests", "projects"))]


def test_wheel_is_mended(wheel):
    for fix in FIXES:
        for edit in fix.edits:
            text = wheel.read(edit.path).decode()
            assert edit.new in text
            assert edit.old in edit.new or edit.old not in text, (fix.name, edit.path)


def test_wheel_metadata(wheel):
    info = f"detectron2-{tool.WHEEL_VERSION}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"Name: detectron2\nVersion: {tool.WHEEL_VERSION}\n" in metadata
    required = re.findall(r"^Requires-Dist: ([\w-]+)", metadata, flags=re.MULTILINE)
    assert {"torch", "fvcore", "pycocotools", "yacs"} <= set(required)
    assert not {"black", "future", "pydot"} & set(required)
    assert "Root-Is-Purelib: true" in wheel.read(f"{info}/WHEEL").decode()
    assert wheel.read(f"{info}/LICENSE").decode() == "Apache License\n"
    assert all(fix.name in wheel.read(f"{info}/FIXES.txt").decode() for fix in FIXES)
    recorded = [line.split(",")[0] for line in wheel.read(f"{info}/RECORD").decode().splitlines()]
    assert sorted(recorded) == sorted(wheel.namelist())


def test_keep_leaves_no_part_behind(tmp_path):
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"wheel")
    kept = tool.keep(wheel, tmp_path / "new" / "dir")
    assert kept.read_bytes() == b"wheel"
    assert [path.name for path in kept.parent.iterdir()] == ["a.whl"]


# --- what is there already ----------------------------------------------------------------------


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


def test_command_line_help_needs_no_package():
    """The script starts with nothing but the standard library."""
    command = [sys.executable, "-S", str(TOOLS / "install_detectron2.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--from-git" in done.stdout


# --- the environment that these tests run in ----------------------------------------------------


def installed_version() -> str | None:
    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return None


ours = pytest.mark.skipif(
    installed_version() != tool.WHEEL_VERSION, reason="detectron2 was not built by this project"
)


@pytest.fixture
def site_packages() -> Path:
    """The folder that detectron2 is installed in."""
    spec = importlib.util.find_spec("detectron2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


@ours
@pytest.mark.parametrize("fix", FIXES, ids=lambda fix: fix.name)
def test_installed_detectron2_has_the_fix(fix, site_packages):
    for edit in fix.edits:
        text = (site_packages / edit.path).read_text(encoding="utf-8")
        assert edit.new in text
        assert edit.old in edit.new or edit.old not in text, edit.path


@ours
def test_installed_detectron2_has_its_configs_and_projects(site_packages):
    package = site_packages / "detectron2"
    assert (package / "model_zoo/configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml").is_file()
    assert (package / "model_zoo/configs/common/models/retinanet.py").is_file()
    assert (package / "projects/point_rend/__init__.py").is_file()


def test_script_and_table_are_the_ones_of_this_checkout():
    root = Path(__file__).resolve().parents[2]
    assert root / "tools" == TOOLS.resolve() == Path(detectron2_fixes.__file__).resolve().parent
