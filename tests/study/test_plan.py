"""Which runs a study makes, decided without running any: outcomes are given."""

import doctest
import json

import pytest

from tr_det.study import cells, measures, reading, sides, states
from tr_det.study.cells import CANDIDATE, ROW, RUN
from tr_det.study.check import check_study
from tr_det.study.definition import read_study
from tr_det.study.outcomes import DIVERGED, DONE, Outcome
from tr_det.study.plan import Plan

STUDY = """
SIDE: classification
CONFIG: base.yaml
SETTINGS: {model.weights: "{fp}/model_final.pth"}
SEEDS: [0, 1]
RUNS:
  fp: {CONFIG: base.yaml}
  fp_part: {CONFIG: base.yaml, SETTINGS: {data.hold_out: 0.2}, SEEDS: [0]}
  recorded: {ROW: {way: TR}, SEED: next}
AXES:
  way:
    plain: {solver.optimizer: SGD, quant.bits: W2A2}
    TR: {solver.optimizer: SGDT, quant.bits: W2A2}
BASELINE: {way: plain}
SEARCH:
  - WHERE: {way: TR}
    KEYS: {solver.lr: [0.1, 0.2, 0.4]}
    EXTEND: 2
    SEEDS: [7]
    SETTINGS: {data.hold_out: 0.2, model.weights: "{fp_part}/model_final.pth"}
"""


@pytest.fixture
def write(tmp_path):
    """Return ``write(**replaced) -> study``, with other texts in the file."""
    (tmp_path / "base.yaml").write_text("solver: {iterations: 4}")

    def write(*pairs):
        text = STUDY
        for old, new in zip(pairs[::2], pairs[1::2]):
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "study.yaml").write_text(text)
        return read_study(tmp_path / "study.yaml")

    return write


def outcome_by(value_of):
    """Return how runs have ended: as ``value_of(cell)`` says; None: not yet."""

    def look(cell):
        value = value_of(cell)
        if value is None:
            return None
        return Outcome(DIVERGED) if value == "diverged" else Outcome(DONE, value)

    return look


def lr(cell):
    return cell.settings["solver.lr"]


def test_runs_come_after_those_that_they_need_and_rows_after_their_search(write):
    plan = Plan(write(), outcome_by(lambda cell: None))
    order = [(cell.kind, cell.seed) for cell in plan.cells()]
    assert order == [(RUN, 0), *[(CANDIDATE, 7)] * 3, (RUN, 0), (ROW, 0), (RUN, 1), (ROW, 1)]
    assert plan.cells()[0].labels == {"run": "fp_part"}
    assert plan.rows[1] == ({"way": "TR"}, {0: None, 1: None})
    assert plan.searches[0].chosen is None


def test_what_rows_start_from_is_run_while_they_are_searched(write):
    study = write("ROW: {way: TR}", "ROW: {way: plain}", "WHERE: {way: TR}", "WHERE: {}")
    plan = Plan(study, outcome_by(lambda cell: None))
    assert all(cell is None for _, cells in plan.rows for cell in cells.values())
    order = [(cell.kind, cell.labels.get("run")) for cell in plan.cells()]
    assert order == [(RUN, "fp_part"), *[(CANDIDATE, None)] * 6, *[(RUN, "fp")] * 2]


def test_a_grid_is_extended_until_its_best_value_has_neighbours(write):
    peak = {0.1: 1.0, 0.2: 2.0, 0.4: 3.0, 0.8: 5.0, 1.6: 4.0}
    known = {}
    for tried in ([0.1, 0.2, 0.4], [0.8], [1.6], []):
        values = dict(known)
        plan = Plan(
            write(), outcome_by(lambda c, v=values: v.get(lr(c)) if c.kind == CANDIDATE else 1)
        )
        new = [lr(c) for c in plan.cells() if c.kind == CANDIDATE and lr(c) not in known]
        assert new == tried
        known |= {value: peak[value] for value in new}
    assert plan.searches[0].chosen == {"solver.lr": 0.8}
    assert plan.searches[0].edges == []
    rows = list(plan.rows[1][1].values())
    assert [lr(cell) for cell in rows] == [0.8, 0.8]
    assert all(cell.settings["model.weights"] == "{fp}/model_final.pth" for cell in rows)


@pytest.mark.parametrize(
    ("values", "chosen", "edges"),
    [
        ([2.0, 3.0, 3.0], 0.2, []),  # the first of equals
        (["diverged", 3.0, "diverged"], 0.2, []),
        ([3.0, 2.0, 1.0], 0.1, ["solver.lr"]),
    ],
)
def test_the_best_is_adopted_and_an_end_of_the_grid_is_told(write, values, chosen, edges):
    given = dict(zip([0.1, 0.2, 0.4], values))
    study = write("EXTEND: 2", "EXTEND: 0")
    plan = Plan(study, outcome_by(lambda c: given[lr(c)] if c.kind == CANDIDATE else None))
    assert plan.searches[0].chosen == {"solver.lr": chosen}
    assert plan.searches[0].edges == edges


def test_a_grid_is_extended_downwards_at_most_three_times(write):
    look = outcome_by(lambda c: -lr(c) if c.kind == CANDIDATE else None)
    (search,) = Plan(write(), look).searches
    assert sorted(search.points) == [(0.0125,), (0.025,), (0.05,), (0.1,), (0.2,), (0.4,)]
    assert search.edges == ["solver.lr"]


@pytest.mark.parametrize(
    ("key", "given", "tried"),
    [
        ("solver.batch_size", "[16, 32]", [16, 32, 64, 128, 256]),  # integers stay integers
        ("solver.momentum", "[0.5, 0.9]", [0.5, 0.9]),  # 1.8 is no momentum
    ],
)
def test_a_grid_is_extended_to_what_can_be(write, key, given, tried):
    study = write("solver.lr: [0.1, 0.2, 0.4]", f"{key}: {given}")
    look = outcome_by(lambda c: c.settings[key] if c.kind == CANDIDATE else None)
    (search,) = Plan(study, look).searches
    assert [repr(point[0]) for point in search.points] == [repr(value) for value in tried]
    assert search.edges == [key]


def test_an_axis_is_searched_separately_if_the_study_says_so(write):
    axes = "AXES:\n  bits:\n    a: {quant.bits: W4A4}\n    b: {quant.bits: W3A3}\n"
    for per, count in (("[bits]", 2), ("[]", 1), ("[way, bits]", 4)):
        study = write("AXES:\n", axes, "WHERE: {way: TR}", f"WHERE: {{}}\n    PER: {per}")
        plan = Plan(study, outcome_by(lambda cell: None))
        assert len(plan.searches) == count


def test_a_search_does_not_start_from_a_run_of_a_row(write):
    study = write(
        *("WHERE: {way: TR}", "WHERE: {}\n    PER: []"),
        *("plain: {solver", 'plain: {data.root: "{recorded}", solver'),
    )
    with pytest.raises(ValueError, match=r"SEARCH=.*recorded.*no run of a row in a search"):
        Plan(study, outcome_by(lambda cell: 1.0))


def test_a_search_in_which_all_diverge_goes_down_and_gives_no_rows(write):
    look = outcome_by(lambda c: "diverged" if c.kind == CANDIDATE else None)
    plan = Plan(write(), look)
    assert (plan.searches[0].chosen, plan.searches[0].edges) == (None, [])
    assert min(plan.searches[0].points) == (0.0125,)
    assert max(plan.searches[0].points) == (0.4,)
    assert [cell.labels["way"] for cell in plan.own_cells() if cell.kind == ROW] == ["plain"] * 2


def test_a_run_of_another_row_may_be_needed_of_the_next_seed(write):
    plain = "plain: {solver.optimizer: SGD"
    study = write(plain, f'{plain}, data.root: "{{recorded}}"', "EXTEND: 2", "EXTEND: 0")
    plan = Plan(study, outcome_by(lambda cell: 1.0 if cell.kind == CANDIDATE else None))
    for seed, other in ((0, 1), (1, 0)):
        cell = plan.rows[0][1][seed]
        assert cell.needs["recorded"] is not None
        assert cell.needs["recorded"].identity == plan.rows[1][1][other].identity
        assert f"/{cell.needs['recorded'].name}" in " ".join(cell.pairs(study.path.parent))


def test_what_changes_a_number_makes_another_cell(write):
    def identities(*pairs):
        plan = Plan(write(*pairs), outcome_by(lambda cell: 1.0))
        return {tuple(cell.labels.values()) + (cell.seed,): cell.identity for cell in plan.cells()}

    first = identities()
    assert len(set(first.values())) == len(first)
    other = identities("SETTINGS: {model", "SETTINGS: {data.root: elsewhere, model")
    assert other[("plain", 0)] != first[("plain", 0)]
    assert identities("SETTINGS: {model", "SETTINGS: {run.device: cpu, model") == first
    start = identities(
        "fp: {CONFIG: base.yaml}", "fp: {CONFIG: base.yaml, SETTINGS: {solver.lr: 1}}"
    )
    changed = {key for key in first if start[key] != first[key]}
    assert changed == {("fp", 0), ("fp", 1), ("plain", 0), ("plain", 1), ("TR", 0), ("TR", 1)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SEEDS: [0, 1]", "SEED: [0, 1]", "SEEDS=None: must be given"),
        ("BASELINE:", "BASLINE:", "key='BASLINE': must be one of .*; did you mean 'BASELINE'"),
        ("BASELINE: {way: plain}", "BASELINE: {way: plan}", "BASELINE.way='plan': must be one of"),
        ("{way: TR}\n    KEYS", "{way: TR}\n    KEY", r"SEARCH\[0\]: KEYS=None: must be given"),
        ("EXTEND: 2", "EXTEND: 0.5", r"SEARCH\[0\]: EXTEND=0.5: must be a factor above 1"),
        ("solver.optimizer: SGDT", "solver.optimizer: SGDX", "solver.optimizer='SGDX': must be"),
        ("solver.lr: [0.1, 0.2", "solver.lr: [0.1, -0.2", "solver.lr=-0.2: must be positive"),
        ("{fp}/", "{pf}/", r"RUNS='\{pf\}': must be one of"),
        ("SETTINGS: {data.hold_out: 0.2, model", "SETTINGS: {model", "data.hold_out=0.0: must be"),
        ("SIDE: classification", "SIDE: segmentation", "SIDE='segmentation': must be one of"),
        ("BASELINE", "METRIC: accuracyy\nBASELINE", "METRIC='accuracyy': must be of the form"),
        (
            "BASELINE",
            "METRIC: loss\nBASELINE",
            "METRIC='loss': must be of the form",
        ),  # less is better
        ("BASELINE", "EXCLUDE: [{}]\nBASELINE", "EXCLUDE=.*must be parts that name labels"),
        ("BASELINE", "EXCLUDE: [{way: [plain, TR]}]\nBASELINE", "EXCLUDE=.*that rows are left"),
        ("SEEDS: [0, 1]", "SEEDS: [0]", r"RUNS.recorded: SEED='next': must be another one"),
        (
            "fp: {CONFIG: base.yaml}",
            'fp: {CONFIG: base.yaml, SETTINGS: {data.root: "{recorded}"}}',
            r"RUNS.fp=\['recorded'\]: must be settings without the run of a row",
        ),
        ("{data.hold_out: 0.2}", "{}", "data.hold_out=0.0: must be at least 0.2"),
        (  # a start whose own start has seen the images
            "{data.hold_out: 0.2}, SEEDS",
            '{data.hold_out: 0.2, model.weights: "{fp}/model_final.pth"}, SEEDS',
            "data.hold_out=0.0: must be at least 0.2",
        ),
        (
            "SETTINGS: {model",
            "SETTINGS: {data.hold_out: 0.1, model",
            "data.hold_out=0.1: must be 0",
        ),
        (
            "BASELINE",
            "ESTIMATE: {SECONDS: .inf, HARDWARE: x}\nBASELINE",
            "SECONDS=inf: must be abov",
        ),
        ("BASELINE", "NAME: ../x\nBASELINE", "NAME='../x': must be the name of a folder"),
        (
            "SETTINGS: {model",
            "SETTINGS: {run.seed: 1, model",
            "run.seed=1: must be left to the stu",
        ),
        ("0.2}, SEEDS", "0.2, run.output_dir: a}, SEEDS", "run.output_dir='a': must be left to"),
        ("0.2, 0.4]", "{a: 1}]", r"SEARCH\[0\]: KEYS.solver.lr=.*must be a list of the values"),
        ("KEYS: {solver.lr: [0.1, 0.2, 0.4]}", "KEYS: {}", r"SEARCH\[0\]: KEYS={}: must be a"),
        (
            "AXES:\n",
            "AXES:\n  log:\n    a: {run.eval_period: 1}\n    b: {run.eval_period: 2}\n",
            "AXES={'log': 'b', 'way': 'plain'}: must be rows that differ",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_it(write, old, new, message):
    with pytest.raises(ValueError, match=message):
        check_study(write(old, new))


def test_lists_can_be_searched(write):
    keys = "KEYS: {solver.methods: [[dampening], [tracker, freezing]]}"
    study = write("KEYS: {solver.lr: [0.1, 0.2, 0.4]}", keys)
    check_study(study)
    better = ["tracker", "freezing"]

    def value(cell):
        return float(cell.kind == CANDIDATE and cell.settings["solver.methods"] == better)

    plan = Plan(study, outcome_by(value))
    assert plan.rows[1][1][0].settings["solver.methods"] == better
    assert '["tracker", "freezing"]' in plan.rows[1][1][0].pairs(study.path.parent)
    assert len({cell.identity for cell in plan.cells() if cell.kind == CANDIDATE}) == 2


def test_rows_that_start_from_different_rows_are_different(write):
    axes = "AXES:\n  decay:\n    a: {solver.weight_decay: 0.1}\n    b: {solver.weight_decay: 0.2}\n"
    plain = "plain: {solver.optimizer: SGD"
    study = write(
        *("AXES:\n", axes, "EXTEND: 2", "EXTEND: 0"),
        *(plain, f'{plain}, solver.weight_decay: 0.3, data.root: "{{recorded}}"'),
    )
    check_study(study)
    rows = Plan(study, outcome_by(lambda cell: 1.0)).rows
    assert len({row[0].identity for labels, row in rows if labels["way"] == "plain"}) == 2


def test_settings_of_a_search_may_name_labels(write):
    study = write(
        "data.hold_out: 0.2, model.weights",
        'data.root: "{way}", data.hold_out: 0.2, model.weights',
    )
    check_study(study)
    (search,) = Plan(study, outcome_by(lambda cell: None)).searches
    (cell, *_) = search.points[(0.1,)]
    assert cell.settings["data.root"] == "TR"


def test_a_label_that_yaml_reads_as_a_number_is_excluded(write):
    study = write(
        "TR: {solver",
        "'2': {solver",
        "way: TR",
        "way: 2",
        "BASELINE",
        "EXCLUDE: [{way: 2}]\nBASELINE",
    )
    assert study.rows() == [{"way": "plain"}]


def test_a_search_on_detection_data_keeps_off_the_test_images(tmp_path):
    """By the files of the images, whatever the datasets are called."""
    parts = {"train": "abcd", "test": "ef", "fit": "ab", "select": "cd", "same": "ef"}
    lines = []
    for name, letters in parts.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"images": [{"file_name": f"{x}.jpg"} for x in letters]}))
        lines.append(f"off_test_{name} {file} {tmp_path}")

    def tree(train, test):
        given = {"TRAIN": train.split(), "TEST": test.split()}
        named = {key: [f"off_test_{name}" for name in names] for key, names in given.items()}
        return {"DATASETS": {**named, "REGISTER": lines}}

    side, own = sides.SIDES["detection"], tree("train", "test")
    side.check_off_test(tree("fit", "select"), own)
    side.check_start(tree("fit", "test"), tree("fit", "select"), own)
    for train, test, key in (
        ("fit", "test", "TEST"),
        ("fit", "same", "TEST"),
        ("train test", "select", "TRAIN"),
        ("train", "select", "TRAIN"),
        ("fit same", "select", "TRAIN"),
    ):
        with pytest.raises(ValueError, match=rf"SEARCH: DATASETS\.{key}="):
            side.check_off_test(tree(train, test), own)
    with pytest.raises(ValueError, match=r"SEARCH: DATASETS\.TRAIN=.*other images than"):
        side.check_start(own, tree("fit", "select"), own)
    side.check_data(own, is_compared=True)
    side.check_data(tree("train", ""), is_compared=False)
    for test, message in (
        ("", r"DATASETS\.TEST=\[\]: must be one dataset"),
        ("test select", r"DATASETS\.TEST=.*: must be one dataset"),
        ("nowhere", r"DATASETS\.TEST='off_test_nowhere': must be a dataset that is registered"),
    ):
        with pytest.raises(ValueError, match=message):
            side.check_data(tree("train", test), is_compared=True)


@pytest.mark.parametrize("module", [cells, measures, reading, sides, states])
def test_examples_in_docstrings_give_what_they_show(module):
    assert doctest.testmod(module).failed == 0
