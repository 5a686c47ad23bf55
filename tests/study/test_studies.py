"""The studies that ship: every config that they make is one."""

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
    cells = Plan(study, lambda cell: None).cells()
    assert len({cell.name for cell in cells}) == len(cells) > 0
    configs = [str(SIDES[study.side].load(c.config, c.pairs(Path("x")))) for c in cells[:8]]
    assert len(set(configs)) == len(configs)


def test_every_method_and_quantizer_is_compared_on_the_detector():
    from tr_det.core import METHODS, QUANTIZERS

    studies = [read_study(path) for path in PATHS if path.parent.name == "methods"]
    rows = [study.base(labels) for study in studies for labels in study.rows()]
    parts = ("MODEL.QUANT.WEIGHT_QUANTIZER", "MODEL.QUANT.ACT_QUANTIZER")
    assert {row[part] for row in rows for part in parts if part in row} == {*QUANTIZERS}
    texts = {text for row in rows for text in row.get("SOLVER.METHODS", ())}
    assert {text.split()[0] for text in texts} == {*METHODS}
