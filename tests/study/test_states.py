"""How long a study will take."""

import pytest

from tr_det.study.definition import read_study
from tr_det.study.plan import Plan
from tr_det.study.states import Clock, expected, needed

STUDY = """
SIDE: classification
CONFIG: base.yaml
SETTINGS: {model.weights: "{fp}/model_final.pth"}
SEEDS: [0, 1]
RUNS: {fp: {CONFIG: base.yaml, SETTINGS: {solver.iterations: 7}, SEEDS: [0]}}
AXES: {optimizer: {SGD: {solver.optimizer: SGD}}}
SEARCH:
  - KEYS: {solver.lr: [0.1, 0.2]}
    SETTINGS: {data.hold_out: 0.2, solver.iterations: 1, model.weights: ""}
ESTIMATE: {SECONDS: 10, HARDWARE: a test}
"""


def test_runs_that_wait_for_a_search_count_with_their_own_length(tmp_path):
    (tmp_path / "base.yaml").write_text("solver: {iterations: 400}")
    (tmp_path / "study.yaml").write_text(STUDY)
    study = read_study(tmp_path / "study.yaml")
    plan = Plan(study, lambda cell: None)
    clock = Clock(study, tmp_path / "output")

    class NoneEnded:
        files = staticmethod(lambda cell: None)

        def __call__(self, cell):
            return None

    known = needed(plan, NoneEnded())
    assert clock.seconds(known, plan, NoneEnded()) == pytest.approx((7 + 2 * 1) * 10)
    assert clock.seconds(expected(plan), plan, NoneEnded()) == pytest.approx(2 * 400 * 10)
