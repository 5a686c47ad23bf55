"""A fake sdist of Detectron2, for the tests of the installer."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2_fixes import FIXES

TOP = "pb1-detectron2-0.6"


def _tar_of(path: Path, files: dict[str, str], extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    """Write a gzipped tar of text files and of other members."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for member in extra:
            tar.addfile(member)
    return path


@pytest.fixture(name="tar_of")
def tar_of_fixture() -> Callable[..., Path]:
    """Return ``tar_of(path, files, extra)``, which writes a gzipped tar."""
    return _tar_of


def _fake_source() -> dict[str, str]:
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
    """An sdist of a tree in which every fix matches, and little else."""
    files = {f"{TOP}/{name}": text for name, text in _fake_source().items()}
    return _tar_of(tmp_path / f"{TOP}.tar.gz", files)
