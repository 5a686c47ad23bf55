"""The campaigns notice what they look for, and a kill is survived."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from campaigns import annotations, attempts, kills, mutations, nodes, planted, tiny
from campaigns.attempts import Attempt, Settings
from campaigns.children import Ended, in_child
from campaigns.compare import differences, metrics_problem
from campaigns.plants import Case
from detectron2.engine import defaults

from tr_det.detection.data import datasets
from tr_det.detection.demo import run as demo_run


@pytest.fixture
def tiny_scenes(monkeypatch):
    """Let the names of the embedded dataset be the tests' again afterwards."""
    monkeypatch.setitem(datasets.SIZES, datasets.FULL, datasets.SIZES[datasets.FULL])
    monkeypatch.setattr(demo_run, "build_digit_scenes", demo_run.build_digit_scenes)
    monkeypatch.setattr(defaults, "collect_env_info", defaults.collect_env_info)


class Dice:
    """A campaign that breaks its promise at every six, and fails itself at every one."""

    PROMISE, ATTEMPTS, MINUTES = "no six", 30, 1.0

    def prepare(self, folder):
        return 6

    def attempt(self, shared, rng, number, folder):
        (folder / "file").touch()
        thrown = rng.randint(1, shared)
        assert thrown > 1
        return Attempt(str(thrown), "thrown", "a six" if thrown == 6 else "", {"eyes": thrown})


def settings(folder, numbers, seconds=60.0, seed=0):
    return Settings(numbers, seconds, seed, 2, folder / "output", folder / f"work{time.time()}")


def test_every_attempt_is_written_and_follows_from_seed_and_number(tmp_path):
    said = []
    broken = attempts.run("dice", Dice(), settings(tmp_path, range(30)), said.append)
    stored = json.loads((tmp_path / "output/dice.json").read_text())
    rows = stored["rows"]
    assert [row["number"] for row in rows] == list(range(30))
    assert (
        broken
        == stored["broken"]
        == sum(row["what"] == "6" or "code" in row["what"] for row in rows)
    )
    assert stored["counts"]["eyes"] == sum(row["counts"].get("eyes", 0) for row in rows)
    assert "a six" in said[-1]
    assert any(row["outcome"] == "no result" for row in rows)
    attempts.run("dice", Dice(), settings(tmp_path, range(7, 8)), said.append)
    (again,) = json.loads((tmp_path / "output/dice.json").read_text())["rows"]
    assert again["what"] == rows[7]["what"]


def test_a_campaign_ends_with_its_time(tmp_path):
    attempts.run("dice", Dice(), settings(tmp_path, range(30), seconds=0), lambda text: None)
    stored = json.loads((tmp_path / "output/dice.json").read_text())
    assert (stored["attempts"], stored["wanted"]) == (0, 30)


def _leave_orphan():
    if os.fork() == 0:
        time.sleep(60)


@pytest.mark.parametrize(
    ("function", "crash"),
    [
        (lambda: 1 / 0, "traceback: ZeroDivisionError"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended by SIGKILL"),
        (lambda: time.sleep(60), "still running after"),
        (lambda: sys.exit(2), ""),
        (lambda: 5, ""),
    ],
)
def test_how_a_child_ends_is_told(tmp_path, function, crash):
    ended = in_child(function, tmp_path, 1.0)
    assert ended.crash.startswith(crash)
    assert bool(ended.crash) == bool(crash)
    assert ended.value in (5, None)


def test_processes_that_outlive_a_child_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("campaigns.children.ORPHANS_SECONDS", 0.2)
    assert in_child(_leave_orphan, tmp_path, 5.0).orphans
    assert not in_child(lambda: None, tmp_path, 5.0).orphans


ROWS = [{"iteration": i, "loss": 1.0 / (i + 1), "eta_seconds": 3.0} for i in range(3)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[2].update(eta_seconds=5.0), ""),
        (lambda rows: rows.insert(1, rows[1]), "rows twice"),
        (lambda rows: rows.pop(), "rows lost"),
        (lambda rows: rows.reverse(), "other rows"),
        (lambda rows: rows[1].update(loss=0.25), "/loss differs"),
        (lambda rows: rows[1].pop("loss"), " (1) instead of  (2)"),
    ],
)
def test_what_is_wrong_with_metrics_is_found(tmp_path, change, problem):
    rows = [dict(row) for row in ROWS]
    change(rows)
    for name, written in (("ours", rows), ("theirs", ROWS)):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in written))
    assert metrics_problem(tmp_path / "ours", tmp_path / "theirs") == problem


def test_one_bit_of_a_checkpoint_is_a_difference(tmp_path):
    for name, value in (("first", 1.0), ("second", 1.0000001)):
        (tmp_path / name).mkdir()
        state = {"model": {"w": torch.tensor([value])}, "iteration": 3}
        torch.save(state, tmp_path / name / "model_final.pth")
        (tmp_path / name / "results.json").write_text(json.dumps({"seconds": value, "ap": 1}))
    found = differences(tmp_path / "first", tmp_path / "second")
    assert found == ["model_final.pth: /model/w differs"]
    assert differences(tmp_path / "first", tmp_path / "first") == []


def test_what_runs_are_killed_in_exists():
    for _, targets in kills.RUNS.values():
        for target in targets:
            owner, name = kills.resolved(target)
            assert callable(getattr(owner, name))


def test_a_run_that_is_killed_before_its_checkpoint_appears_ends_as_if_it_had_not_been(
    tmp_path, tiny_scenes, monkeypatch
):
    monkeypatch.setattr(kills, "RUNS", {"classifier": kills.RUNS["classifier"]})
    monkeypatch.setattr(kills, "MOST_KILLS", 1)
    monkeypatch.setitem(tiny._CLASSIFIER_RUN["solver"], "iterations", 6)
    kill = kills.Kill(0.0, "os.replace", 2, "before")
    monkeypatch.setattr(kills, "_draw", lambda rng, reference: kill)
    files = tiny.prepare(tmp_path / "shared")
    reference = kills._uninterrupted(
        "classifier", *kills.RUNS["classifier"], files, tmp_path / "reference"
    )
    shared = kills.Shared(files, {"classifier": reference})
    found = kills.attempt(shared, random.Random(0), 0, tmp_path / "run")
    assert found.counts["kills of the classifier"] == 1
    assert found.broken == ""


def test_values_and_bytes_change_as_the_seed_says():
    data = bytes(range(200))
    for seed in range(50):
        first, second = (mutations.changed_bytes(data, random.Random(seed)) for _ in range(2))
        assert first == second
        assert first[1] != data
    for value in (True, 3, 0.5, "x", [1, 2, 3]):
        changed = {repr(mutations.alike(value, random.Random(seed))) for seed in range(40)}
        assert len(changed - {repr(value)}) > (not isinstance(value, bool))


def test_perfect_detections_tell_a_file_that_changes_scores(tmp_path, tiny_scenes):
    shared = annotations.prepare(tmp_path / "shared")
    tree = shared.trees["val"]
    images = shared.files / "datasets/digit_scenes/val"
    problems = []
    for name in ("whole", "harmed"):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(tree))
        folder = tiny.with_images(shared.files, tmp_path / name)
        probe = lambda file=file: annotations._probe(shared.files, "val", file, images)  # noqa: E731
        ended = in_child(probe, folder, 60)
        problems.append("refused" if ended.refused else ended.value["problem"])
        tree["annotations"][0]["bbox"][0] += 1000
    assert problems[0] == ""
    assert problems[1]


def test_planted_code_that_runs_is_noticed(tmp_path, monkeypatch):
    """And one that does not is not."""

    def plant(place):
        return (lambda: place.ran.touch()) if "runs" in place.folder.parent.name else int

    monkeypatch.setattr(planted, "CASES", (Case("a plant", plant),))
    (tmp_path / "datasets").mkdir()
    for name, outcome in (("runs", "ran"), ("stays", "passed over")):
        folder = tmp_path / name
        folder.mkdir()
        found = planted.attempt(tmp_path, random.Random(0), 0, folder)
        assert found.outcome == outcome
        assert bool(found.broken) == (outcome == "ran")


def test_every_case_of_planted_code_has_a_name_of_its_own():
    names = [case.what for case in planted.CASES]
    assert len(set(names)) == len(names) > 100
    assert Path(tiny.ROOT / "tools/campaigns/run.py").is_file()


def test_a_pair_of_nodes_that_goes_back_or_fails_is_noticed():
    survivor = "Starting training from iteration 0\nlost\nStarting training from iteration {}\n"
    for start, problem in ((4, []), (2, ["went on from iteration 2 instead of 4"])):
        ends = [Ended(0, survivor.format(start), None, 1.0), Ended(0, "", None, 1.0)]
        assert nodes.problems_of(ends, 4) == problem
    failed = [Ended(1, survivor.format(4) + "error: no", None, 1.0), Ended(0, "", None, 1.0, True)]
    found = ["did not end: status 1: error: no", "processes outlive it"]
    assert nodes.problems_of(failed, 4) == found
