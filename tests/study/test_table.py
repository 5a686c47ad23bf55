"""Tables of studies whose runs are given."""

import csv
import io

import pytest

from tr_det.study.cells import CANDIDATE
from tr_det.study.definition import read_study
from tr_det.study.outcomes import DIVERGED, DONE, Outcome
from tr_det.study.plan import Plan
from tr_det.study.recording import make_record
from tr_det.study.table import csv_text, markdown

STUDY = """
SIDE: classification
CONFIG: base.yaml
SEEDS: [0, 1, 2]
AXES:
  way:
    a: {solver.optimizer: SGD}
    b|c: {solver.optimizer: SGDT}
BASELINE: {way: a}
SEARCH:
  - WHERE: {}
    PER: []
    KEYS: {solver.lr: [0.1, 0.2]}
    SEEDS: [7, 8]
    SETTINGS: {data.hold_out: 0.2}
"""
VALUES = {("a", 0): 50.0, ("a", 1): 51.0, ("b|c", 0): 50.0, ("b|c", 1): 56.0, ("b|c", 2): 62.0}


class Given:
    """How runs have ended: one of the baseline's has diverged, and a candidate at 0.2."""

    gpu = ""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, cell):
        place = cell.labels["way"], cell.seed
        if cell.kind == CANDIDATE:
            diverged = cell.seed == 8 and cell.settings["solver.lr"] == 0.2
            value = 60.0
        else:
            diverged, value = place not in VALUES, VALUES.get(place)
        if diverged:
            return Outcome(DIVERGED, error="loss is NaN")
        results = {"seconds": 36.0, "tr": {}, "cost": {}, "metrics": {}}
        if place in VALUES and cell.kind != CANDIDATE:
            results["versions"] = {"torch": "2"}
            results["machine"] = {"cpu": "a CPU", "gpu": self.gpu, "processes": 2, "threads": 3}
        if value is not None and value > 55:
            results["tr"] = {"mean_rate": value / 1000}
        return Outcome(DONE, value, results)


@pytest.fixture
def record(tmp_path):
    (tmp_path / "base.yaml").write_text("solver: {iterations: 4}")
    (tmp_path / "study.yaml").write_text(STUDY)
    plan = Plan(read_study(tmp_path / "study.yaml"), outcomes := Given(tmp_path))
    return make_record(plan, outcomes, command="command")


def test_what_is_missing_in_a_row_is_told(record):
    lines = markdown(record).splitlines()
    assert "| a | 50.50 ± 0.71 (n = 2, 1 diverged) |  |" in lines
    # 0 and 5: mean 2.5, sd 3.54; the interval of two pairs reaches 12.706 / sqrt(2) sd.
    assert "| b\\|c | 56.00 ± 6.00 | +2.50 [-29.27, +34.27] (2 pairs) |" in lines
    (searched,) = [line for line in lines if line.startswith("Searched")]
    assert "**0.1: 60.00**; 0.2: diverged" in searched


def test_hours_are_of_the_threads_that_each_run_had_where_it_was_made(record):
    made = "5 runs on a CPU, 2 processes, 3 threads each; torch 2. "
    assert made in (text := markdown(record))
    assert "3 runs on a machine that is not recorded. 0.33 core hours" in text
    assert record["hours"] == {"runs": pytest.approx(0.3), "search": 0.03, "supports": 0}


def test_hours_on_gpus_are_of_gpus(tmp_path):
    (tmp_path / "base.yaml").write_text("solver: {iterations: 4}")
    (tmp_path / "study.yaml").write_text(STUDY[: STUDY.index("SEARCH")])
    outcomes = Given(tmp_path)
    outcomes.gpu = "a GPU"
    record = make_record(Plan(read_study(tmp_path / "study.yaml"), outcomes), outcomes, command="")
    assert "5 runs on a GPU, 2 processes; torch 2. 0.10 GPU hours of training" in markdown(record)


def test_a_spreadsheet_tells_what_diverged_from_what_was_not_run(record):
    rows = list(csv.DictReader(io.StringIO(csv_text(record))))
    assert [rows[0][f"state of seed {seed}"] for seed in (0, 1, 2)] == ["done", "done", "diverged"]
    assert (rows[0]["seed 2"], rows[0]["n"], rows[1]["difference n"]) == ("", "2", "2")


def test_measures_are_columns_of_means_over_the_runs_that_have_them(tmp_path):
    (tmp_path / "base.yaml").write_text("solver: {iterations: 4}")
    text = STUDY[: STUDY.index("SEARCH")] + "MEASURES: [seconds, tr.mean_rate, tr.factor]\n"
    (tmp_path / "study.yaml").write_text(text)
    plan = Plan(read_study(tmp_path / "study.yaml"), outcomes := Given(tmp_path))
    record = make_record(plan, outcomes, command="command")
    first, second = [line for line in markdown(record).splitlines() if line[:3] in ("| a", "| b")]
    assert first.endswith("| 36 | - | - |")
    assert second.endswith("| 36 | 0.059 | - |")  # of 56 and 62; that with 50 has none
    (head, *_, last) = csv.reader(io.StringIO(csv_text(record)))
    assert head[-3:] == ["seconds", "tr.mean_rate", "tr.factor"]
    assert last[-3:] == ["36.0", "0.059", ""]
