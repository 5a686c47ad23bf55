"""The studies that ship: every config that they make is one."""

import re
from pathlib import Path

import pytest

from tr_det.study.check import check_study
from tr_det.study.definition import read_study
from tr_det.study.plan import Plan
from tr_det.study.sides import SIDES

FOLDER = Path(__file__).resolve().parents[2] / "configs/studies"
PATHS = sorted(path for path in FOLDER.rglob("*.yaml") if not path.name.startswith("Base"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_study_is_made_of_configs_and_no_run_comes_twice(path):
    study = read_study(path)
    check_study(study)
    plan = Plan(study, lambda cell: None)
    cells = [cell for _, row in plan.rows for cell in row.values() if cell is not None]
    assert len({cell.identity for cell in cells}) == len(cells)
    for cell in plan.cells()[:8]:
        SIDES[study.side].load(cell.config, cell.pairs(Path("x")))


def test_the_example_of_the_documentation_is_a_study(tmp_path):
    page = FOLDER.parents[1] / "tr_det/docs/studies.md"
    (text,) = re.findall("```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "example.yaml"
    path.write_text(text.replace("../digits", str(FOLDER.parent / "digits")), encoding="utf-8")
    check_study(read_study(path))


def test_every_method_and_quantizer_is_compared_on_the_detector():
    from tr_det.core import METHODS, QUANTIZERS

    studies = [read_study(path) for path in PATHS if path.parent.name == "methods"]
    rows = [study.base(labels) for study in studies for labels in study.rows()]
    parts = ("MODEL.QUANT.WEIGHT_QUANTIZER", "MODEL.QUANT.ACT_QUANTIZER")
    assert {row[part] for row in rows for part in parts if part in row} == {*QUANTIZERS}
    texts = {text for row in rows for text in row.get("SOLVER.METHODS", ())}
    assert {text.split()[0] for text in texts} == {*METHODS}
