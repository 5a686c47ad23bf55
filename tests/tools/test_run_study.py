"""Whole studies of a tiny classifier by the command, its runs by the real trainer."""

import json
import random
import re

import pytest
import run_study
import yaml
from campaigns import studies
from campaigns.children import in_child
from detectron2.engine import defaults

from tr_det.detection.data import datasets
from tr_det.detection.demo import run as demo_run


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return the files of a study, and what it gave."""
    with pytest.MonkeyPatch.context() as patch:  # which `tiny` changes
        patch.setitem(datasets.SIZES, datasets.FULL, datasets.SIZES[datasets.FULL])
        patch.setattr(demo_run, "build_digit_scenes", demo_run.build_digit_scenes)
        patch.setattr(defaults, "collect_env_info", defaults.collect_env_info)
        yield studies.prepare(tmp_path_factory.mktemp("study") / "shared")


def record_of(study):
    return json.loads((study / "study.json").read_text())


def test_a_study_has_every_run_once_and_its_search_keeps_off_the_test_images(shared):
    record = record_of(shared.reference)
    assert [cell["state"] for cell in [*record["cells"], *record["runs"]]] == ["done"] * 5
    (search,) = record["searches"]
    values = {tuple(entry["point"]): entry["value"] for entry in search["points"]}
    assert search["chosen"] == {"solver.lr": max(values, key=values.get)[0]}
    for cell in search["candidates"]:
        run = json.loads((shared.reference / cell["folder"] / "results.json").read_text())
        assert run["config"]["data"]["hold_out"] == 0.3
        assert not list((shared.reference / cell["folder"]).glob("*.pth"))
    for row in record["rows"]:
        for seed, value in row["values"].items():
            cell = next(
                c
                for c in record["cells"]
                if c["labels"] == row["labels"] and c["seed"] == int(seed)
            )
            folder = shared.reference / cell["folder"]
            run = json.loads((folder / "results.json").read_text())
            assert run["metrics"]["accuracy"] == value
            assert (run["seed"], run["config"]["data"]["hold_out"]) == (int(seed), 0.0)
            (start,) = [r["folder"] for r in record["runs"]]
            assert f"/{start}/" in run["paths"]["start"]
    lr = {row["labels"]["method"]: row["chosen"] for row in record["rows"]}
    assert lr == {"SGD": search["chosen"], "SGDT": {}}


def test_a_study_that_is_killed_ends_with_the_same_table(shared, tmp_path):
    found = studies.attempt(shared, random.Random(3), 0, tmp_path / "killed")
    assert found.counts["kills of the study"] >= 1  # a machine that gets quicker ends sooner
    assert found.broken == ""


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        run_study.main([str(word) for word in arguments])
    return stop.value.code


def test_results_of_another_study_count(shared, tmp_path, capsys):
    study = tmp_path / "again"
    arguments = [shared.files / studies.STUDY, "--output", study]
    assert call(*arguments, "--from", shared.reference / "study.json") == 0
    assert all(folder.is_symlink() for folder in study.glob("*_seed*"))
    assert (study / "table.csv").read_bytes() == (shared.reference / "table.csv").read_bytes()
    assert f"Some results were taken from {shared.reference}" in capsys.readouterr().out
    assert call(*arguments) == 0  # they stay


def test_of_a_study_on_another_machine_the_numbers_count(shared, tmp_path):
    """By this study's own metric; a run that has begun here goes on here."""
    there, study = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    record = record_of(shared.reference)
    (there / "study.json").write_text(json.dumps(record))
    keys = yaml.safe_load((shared.files / studies.STUDY).read_text())
    path = shared.files / "top5.yaml"
    path.write_text(yaml.safe_dump({**keys, "METRIC": "top5"}))
    begun = next(cell for cell in record["cells"] if cell["labels"]["method"] == "SGDT")
    (study / begun["folder"]).mkdir(parents=True)
    started = studies.start(path, "--output", str(study), "--from", str(there / "study.json"))
    assert in_child(started, tmp_path, studies.LIMIT).status == 0
    made = [folder.parent.name for folder in study.glob("*/output.txt")]
    (start,) = [run["folder"] for run in record["runs"]]
    assert sorted(made) == sorted([start, begun["folder"]])  # whose files it needs
    for cell in record_of(study)["cells"]:
        assert cell["value"] == cell["results"]["metrics"]["top5"]
        own = cell["folder"] not in made
        assert (cell["origin"] == str(there / "study.json")) == own


def test_a_run_of_another_study_is_read_where_it_is(shared, tmp_path):
    """The start of a new row is not trained again."""
    keys = yaml.safe_load((shared.files / studies.STUDY).read_text())
    del keys["SEARCH"]
    keys["SEEDS"] = [5]
    del keys["AXES"]["method"]["SGD"], keys["BASELINE"]
    path = shared.files / "another.yaml"
    path.write_text(yaml.safe_dump(keys))
    start = studies.start(path, "--from", shared.reference / "study.json")
    assert in_child(start, tmp_path, studies.LIMIT).status == 0
    (run,) = record_of(tmp_path / studies.OUT)["runs"]
    folder = tmp_path / studies.OUT / run["folder"]
    assert folder.resolve() == shared.reference / run["folder"]


def test_what_would_be_run_is_told(shared, tmp_path, capsys):
    arguments = [str(shared.files / studies.STUDY), "--output", str(tmp_path), "--dry-run"]
    with pytest.raises(SystemExit):
        run_study.main([*arguments, "--workers", "0"])
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    run_study.main([*arguments, "--gpus", "800"])  # it is another machine that will have them
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("missing") for line in lines) == 5  # fp, two candidates, SGDT
    assert lines[-2] == "searched           SGD, seed 0, 1"
    record = record_of(shared.reference)
    record["cells"][0]["state"] = "failed"
    others = tmp_path.parent / "study.json"
    others.write_text(json.dumps(record))
    run_study.main([*arguments, "--from", str(others)])
    lines = capsys.readouterr().out.splitlines()
    (start,), cell = [run["folder"] for run in record["runs"]], record["cells"][0]["folder"]
    told = [line.split() for line in lines[:-1]]
    assert [(words[0], words[-1]) for words in told] == [("again", start), ("missing", cell)]
    assert not list(tmp_path.iterdir())


def test_runs_that_fail_or_diverge_do_not_stop_the_others(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("tr_det.study.run.PAUSES", (0.0,))
    keys = yaml.safe_load((shared.files / studies.STUDY).read_text())
    del keys["RUNS"]
    keys["SETTINGS"] = {"solver.iterations": 2}
    keys["SEARCH"] = [
        {
            "WHERE": {"method": "is searched"},
            "KEYS": {"solver.lr": [1e30]},
            "SETTINGS": {"data.hold_out": 0.3, "solver.iterations": 9},
        }
    ]
    keys["SEEDS"] = [0]
    keys["AXES"]["method"] = {
        "SGD": {"solver.optimizer": "SGD"},
        "is searched": {"solver.optimizer": "SGD"},
        "diverges": {"solver.optimizer": "SGD", "solver.lr": 1e30, "solver.iterations": 9},
        "fails": {"model.weights": "nowhere.pth"},
    }
    keys["MEASURES"] = ["seconds", "tr.mean_ratee"]
    path = shared.files / "failing.yaml"
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    ended = in_child(studies.start(path), tmp_path / "study", studies.LIMIT)
    assert ended.status == 1
    assert "is searched, seed 0: not run, as its search has found no value\n" in ended.output
    assert re.findall("MEASURES: no run has (.*)", ended.output) == ["tr.mean_ratee"]
    cells = {c["labels"]["method"]: c for c in record_of(tmp_path / "study/study")["cells"]}
    states = {name: cell["state"] for name, cell in cells.items()}
    assert states == {
        "SGD": "done",
        "is searched": "searched",
        "diverges": "diverged",
        "fails": "failed",
    }
    assert "nowhere.pth" in cells["fails"]["error"]
    assert "the run diverged" in cells["diverges"]["error"]
    table = (tmp_path / "study/study/table.md").read_text()
    assert "| diverges | diverged |" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "error: config nowhere.yaml: no such file"),
        (["{study}", "--threads", "0"], "error: --threads=0: must be from 1 to"),
        (["{study}", "--workers", "99"], "error: --workers=99: must be from 1 to"),
        (["{study}", "--from", "{study}"], "error: --from="),
        (["{study}", "--slurm", "partition"], "error: --slurm='partition': must be key=value"),
        (["{study}", "--slurm"], "error: --slurm='': must be options that submitit takes here: "),
        (["{study}", "--slurm", "cluster=local", "foo=1"], "error: --slurm='cluster=local foo=1'"),
        (["{study}", "--slurm", "--workers", "0"], "error: --workers=0: must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(shared, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM is here
    words = [word.format(study=shared.files / studies.STUDY) for word in arguments]
    assert call(*words, "--output", tmp_path / "out") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_clusters_are_reached_by_submitit(shared, tmp_path, monkeypatch):
    """By its local executor, with a program that is as quick as a run that has ended."""
    program = tmp_path / "tool.py"
    program.write_text(
        "import json, sys; from pathlib import Path; folder = Path(sys.argv[1]);"
        "threads = float(__import__('os').environ['OMP_NUM_THREADS']);"
        "results = dict(metrics=dict(accuracy=threads), seconds=1, updates=2, tr={}, cost={});"
        "(folder / 'results.json').write_text(json.dumps(results));"
        "(folder / 'model_0000001.pth').write_text('')"
    )
    words = lambda cell, study, tools, gpus: [str(program), str(cell.folder(study))]  # noqa: E731
    monkeypatch.setattr("tr_det.study.cluster.command", words)
    keys = yaml.safe_load((shared.files / studies.STUDY).read_text())
    del keys["RUNS"], keys["SEARCH"], keys["BASELINE"], keys["AXES"]["method"]["SGDT"]
    keys["AXES"]["method"]["keeps"] = {"solver.lr": 1.0, "run.keep_checkpoints": 1}
    keys |= {"SETTINGS": {}, "SEEDS": [0]}
    path = shared.files / "submitted.yaml"
    path.write_text(yaml.safe_dump(keys))
    study = tmp_path / "study"
    assert (
        call(path, "--output", study, "--threads", "3", "--slurm", "cluster=local", "timeout_min=5")
        == 0
    )
    for cell in record_of(study)["cells"]:
        assert (cell["state"], cell["value"]) == ("done", 3.0)
        left = (study / cell["folder"] / "model_0000001.pth").exists()
        assert left == (cell["labels"]["method"] == "keeps")
    assert list((study / "jobs").glob("*_result.pkl"))
