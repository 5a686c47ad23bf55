"""A fake sdist of Detectron2, for the tests of the installer."""

import tarfile
from pathlib import Path

import pytest
from install.fixes import FIXES

TOP = "pb1-detectron2-0.6"


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    """An sdist of a tree in which every fix matches, and little else."""
    folder = tmp_path / TOP
    for fix in FIXES:
        for edit in fix.edits:
            path = folder / "detectron2" / edit.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(edit.old * edit.times)
    with tarfile.open(tmp_path / f"{TOP}.tar.gz", "w:gz") as tar:
        tar.add(folder, TOP)
    return tmp_path / f"{TOP}.tar.gz"
