"""Tests of the table tools/detectron2_fixes.py, and of an installed detectron2 that it mended."""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest
from detectron2_fixes import FIXES
from detectron2_wheel import WHEEL_VERSION


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


# --- the environment that these tests run in -----------------------------------------------------


def installed_version() -> str | None:
    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return None


ours = pytest.mark.skipif(
    installed_version() != WHEEL_VERSION, reason="detectron2 was not built by this project"
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
