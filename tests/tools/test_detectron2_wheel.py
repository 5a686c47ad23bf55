"""Tests of tools/detectron2_wheel.py, on a fake sdist. None needs the network."""

import hashlib
import re
import tarfile
import zipfile
from pathlib import Path

import detectron2_wheel as tool
import pytest
from detectron2_fixes import FIXES, Edit, Fix
from detectron2_messages import InstallError

TOP = "pb1-detectron2-0.6"


# --- unpacking -----------------------------------------------------------------------------------


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("name", ["../evil.py", f"{TOP}/../../evil.py", "/tmp/evil.py", "a\\..\\b"])
def test_unpack_refuses_to_leave_its_folder(tar_of, tmp_path, name):
    inside = tmp_path / "inside" / "deep"
    inside.mkdir(parents=True)
    archive = tar_of(tmp_path / "bad.tar.gz", {f"{TOP}/a.py": "", name: "evil"})
    with pytest.raises(InstallError, match="refusing to unpack"):
        tool.unpack(archive, inside)
    assert not list(tmp_path.rglob("evil.py"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_unpack_refuses_links_and_devices(tar_of, tmp_path, kind):
    odd = member(f"{TOP}/odd", kind, "/etc/passwd")
    archive = tar_of(tmp_path / "bad.tar.gz", {f"{TOP}/a.py": ""}, (odd,))
    with pytest.raises(InstallError, match="no file or folder"):
        tool.unpack(archive, tmp_path / "out")


def test_unpack_refuses_two_top_folders_and_broken_files(tar_of, tmp_path):
    archive = tar_of(tmp_path / "two.tar.gz", {"a/x.py": "", "b/x.py": ""})
    with pytest.raises(InstallError, match="should hold one folder"):
        tool.unpack(archive, tmp_path / "out")
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(InstallError, match="cannot unpack broken.tar.gz"):
        tool.unpack(broken, tmp_path / "out2")


# --- fixes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nothing of it\n", "old\nold\n"])
def test_fix_that_does_not_match_names_file_and_fix(tmp_path, text):
    (tmp_path / "module.py").write_text(text)
    fix = Fix("some-fix", "why", "0" * 40, (Edit("module.py", "old", "new"),))
    with pytest.raises(InstallError, match=r"fix some-fix: module\.py .* expected 1"):
        tool.apply_fixes(tmp_path, [fix])
    assert (tmp_path / "module.py").read_text() == text


def test_fix_of_a_file_that_is_gone_names_it(tmp_path):
    fix = Fix("some-fix", "why", "0" * 40, (Edit("gone.py", "old", "new"),))
    with pytest.raises(InstallError, match=r"some-fix: gone\.py does not exist"):
        tool.apply_fixes(tmp_path, [fix])


def test_fix_replaces_the_stated_number_of_times(tmp_path):
    (tmp_path / "module.py").write_text("a = np.int\nb = np.int\n")
    fix = Fix("some-fix", "why", "0" * 40, (Edit("module.py", "np.int", "int", count=2),))
    tool.apply_fixes(tmp_path, [fix])
    assert (tmp_path / "module.py").read_text() == "a = int\nb = int\n"


def test_a_fix_that_breaks_a_file_is_noticed(tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(InstallError, match=r"broken\.py"):
        tool.check_syntax(tmp_path)


# --- the wheel -----------------------------------------------------------------------------------


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
