"""How long a study will take."""

import pytest

from tr_det.study.definition import read_study
from tr_det.study.outcomes import Outcomes
from tr_det.study.plan import Plan
from tr_det.study.progress import summary
from tr_det.study.states import BESIDE, Clock, expected, needed

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
ESTIMATE: {SECONDS: 10, HARDWARE: a test, GPUS: 8}
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
    rest = clock.rest(known, plan, NoneEnded())
    assert [length - BESIDE for length in rest.seconds] == pytest.approx([10, 10, 7 * 10])
    rest = clock.rest(expected(plan), plan, NoneEnded())
    assert [length - BESIDE for length in rest.seconds] == pytest.approx([400 * 10] * 2)
    assert rest.estimated == pytest.approx(2 * 400 * 10 * 8 / 3600)


def test_a_study_ends_no_sooner_than_its_longest_run(tmp_path):
    (tmp_path / "base.yaml").write_text("solver: {iterations: 400}")
    (tmp_path / "study.yaml").write_text(STUDY.partition("SEARCH")[0] + STUDY.splitlines()[-1])
    study = read_study(tmp_path / "study.yaml")
    outcomes = Outcomes(tmp_path / "output", study.metric)
    lines = [
        summary(Plan(study, outcomes), outcomes, Clock(study, tmp_path / "output"), slots)
        for slots in (1, 100)
    ]
    assert ", 2 h 15 min of runs left, 2 h 15 min with 1 at once" in lines[0]
    assert ", 2 h 15 min of runs left, 1 h 07 min with 100 at once" in lines[1]
    assert lines[1].endswith("; by the estimate for a test: 18 GPU hours")
