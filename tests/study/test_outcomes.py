"""What a run's folder says of how it has ended."""

import json

import pytest

from tr_det.study.cells import ROW, RUN, Cell
from tr_det.study.outcomes import DONE, Outcomes


@pytest.mark.parametrize("below", [True, False])
def test_a_run_of_another_study_names_it_from_the_working_folder(tmp_path, monkeypatch, below):
    cell = Cell(ROW, {"method": "SGD"}, 0, "classification", tmp_path / "base.yaml", {})
    (tmp_path / "base.yaml").write_text("solver: {iterations: 4}")
    own, other = tmp_path / "studies/own", tmp_path / "studies/other"
    made = cell.folder(other)
    made.mkdir(parents=True)
    own.mkdir()
    (made / "results.json").write_text(json.dumps({"metrics": {"accuracy": 90.0}, "tr": {}}))
    cell.folder(own).symlink_to(made)
    monkeypatch.chdir(tmp_path if below else own)
    outcome = Outcomes(own, "accuracy")(cell)
    assert (outcome.state, outcome.value) == (DONE, 90.0)
    expected = "studies/other/study.json" if below else str(other / "study.json")
    assert outcome.origin == expected


def test_only_a_supporting_run_may_lack_what_runs_are_compared_by(tmp_path):
    (tmp_path / "base.yaml").write_text("solver: {iterations: 4}")
    for kind in (RUN, ROW):
        cell = Cell(kind, {"run": kind}, 0, "classification", tmp_path / "base.yaml", {})
        cell.folder(tmp_path).mkdir(exist_ok=True)
        results = {"metrics": {"loss": 1.0}, "tr": {}}
        (cell.folder(tmp_path) / "results.json").write_text(json.dumps(results))
        if kind == RUN:
            outcome = Outcomes(tmp_path, "accuracy")(cell)
            assert (outcome.state, outcome.value) == (DONE, None)
        else:
            with pytest.raises(ValueError, match="METRIC='accuracy': must be one of .*: loss"):
                Outcomes(tmp_path, "accuracy")(cell)
