import json
import shutil
from pathlib import Path

import figures
import pytest

from tr_det.classification.config.file import load_config
from tr_det.classification.engine.run import run

CONFIGS = Path(__file__).parents[2] / "configs/classification/digits"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a TR-scheduled and a plain run, with two checkpoints each."""
    folder = tmp_path_factory.mktemp("runs")
    short = {"solver.iterations": 4, "run.log_period": 1, "run.checkpoint_period": 2}
    for name in ("sgdt", "sgd"):
        keys = {**short, "model.pretraining": "", "run.output_dir": folder / name}
        overrides = [str(part) for pair in keys.items() for part in pair]
        run(load_config(CONFIGS / f"resnet8_{name}.yaml", overrides))
    return folder


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["figures.py", *map(str, arguments)])
    figures.main()


def test_runs_are_drawn_and_their_numbers_written(runs, monkeypatch, tmp_path, capsys):
    both = [runs / "sgdt", runs / "sgd"]
    for name, folders in (("tr-scheduling", both[:1]), ("step-sizes", both), ("step-decay", both)):
        call(monkeypatch, name, "--output", tmp_path, "--run", *folders)
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "step-sizes.json").read_text())["runs"]
    assert list(written) == ["SGDT, sgdt", "SGD, sgd"]
    accuracy = json.loads((runs / "sgd/results.json").read_text())[-1]["accuracy"]
    assert written["SGD, sgd"]["accuracy"] == accuracy
    assert "SGDT, sgdt  accuracy" in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart(runs, monkeypatch, tmp_path, capsys):
    shutil.copytree(runs / "sgd", tmp_path / "other/sgd")
    shutil.copytree(runs / "sgd", tmp_path / "one/sgd")
    folders = [tmp_path / "one/sgd", tmp_path / "other/sgd"]
    call(monkeypatch, "step-sizes", "--output", tmp_path, "--run", *folders)
    assert {"SGD, one/sgd", "SGD, other/sgd"} == {
        line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[:2]
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tr-scheduling", "--run", "sgd"], "sgd: a run of SGD, which has no TR scheduling"),
        (["tr-scheduling", "--run", "sgdt", "sgd"], "2 folders; tr-scheduling draws at most 1"),
        (["step-sizes", "--run", *["sgd"] * 9], "9 folders; step-sizes draws at most 8"),
        (["step-sizes", "--run", "lost"], "lost: no such folder"),
        (["step-sizes", "--run", "sgd", "--seed", "1"], "--seed is of runs that are made here"),
    ],
)
def test_what_cannot_be_drawn_is_told(runs, monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, *arguments, "--output", tmp_path)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_weights_are_not_shown_without_a_checkpoint(runs, monkeypatch, tmp_path, capsys):
    shutil.copytree(runs / "sgdt", tmp_path / "a", ignore=shutil.ignore_patterns("*.pth"))
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "tr-scheduling", "--run", tmp_path / "a", "--output", tmp_path)
    assert "a: has no checkpoint" in capsys.readouterr().err
    call(monkeypatch, "step-sizes", "--run", tmp_path / "a", "--output", tmp_path)
    assert "clipped" not in capsys.readouterr().out


@pytest.mark.parametrize("factor", ["0", "-1", "nan"])
def test_a_factor_must_be_positive(monkeypatch, capsys, factor):
    monkeypatch.setattr("sys.argv", ["figures.py", "step-sizes", "--factor", factor])
    with pytest.raises(SystemExit, match="2"):
        figures.main()
    assert "--factor must be above 0" in capsys.readouterr().err
