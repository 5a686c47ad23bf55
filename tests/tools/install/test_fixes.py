"""The table of fixes, and an installed detectron2 that has them."""

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest
from install.detectron2 import VERSION
from install.fixes import FIXES, Edit, Fix, FixError, apply_fixes

FIX = Fix("some-fix", "why", "commit/0", (Edit("module.py", "np.int", "int", times=2),))


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "detectron2" / "module.py"
    path.parent.mkdir()
    return path


def test_a_fix_replaces_the_stated_number_of_times(module, tmp_path):
    module.write_text("a = np.int\nb = np.int\n")
    apply_fixes(tmp_path, [FIX])
    assert module.read_text() == "a = int\nb = int\n"


@pytest.mark.parametrize("text", ["nothing of it\n", "np.int\n", "np.int np.int np.int\n"])
def test_a_fix_that_does_not_match_names_itself_and_its_file(module, tmp_path, text):
    module.write_text(text)
    with pytest.raises(FixError, match=r"fix some-fix: module\.py"):
        apply_fixes(tmp_path, [FIX])
    assert module.read_text() == text


def installed_version():
    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.mark.skipif(installed_version() != VERSION, reason="not a detectron2 of this installer")
def test_the_installed_detectron2_has_the_fixes_its_configs_and_projects():
    package = Path(importlib.util.find_spec("detectron2").origin).parent
    for fix in FIXES:
        for edit in fix.edits:
            text = (package / edit.path).read_text(encoding="utf-8")
            assert edit.new in text
            assert edit.old in edit.new or edit.old not in text, edit.path
    assert (package / "model_zoo/configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml").is_file()
    assert (package / "model_zoo/configs/common/models/retinanet.py").is_file()
    assert (package / "projects/point_rend/__init__.py").is_file()
