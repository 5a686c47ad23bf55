import json
import shutil
from pathlib import Path

import figures
import pytest

from tr_det.classification.config.reading import load_config
from tr_det.study import figure_runs

NAMES = ("SGDT", "SGD")
DIGITS = Path(__file__).parents[2] / "configs/classification/digits"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with a figure of SGDT beside SGD, and the folders of the two runs."""
    output = tmp_path_factory.mktemp("runs")
    for name, text in (("fp", "solver: {iterations: 4}"), ("sgd", "")):
        text = f"_BASE_: {DIGITS}/resnet8_{name}.yaml\n{text}"
        (output / f"resnet8_{name}.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure_runs, "CONFIGS", output)
        call(patch, "step-decay", "--steps", 40, "--factor", 0.01, "--output", output)
    found = {name: output / f"step-decay/{name}_w2_lambda_0.01_40_updates_seed0" for name in NAMES}
    return output, found


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["figures.py", *map(str, arguments)])
    figures.main()


def test_a_figure_makes_ordinary_runs(runs):
    output, folders = runs
    written = json.loads((output / "step-decay.json").read_text())
    assert list(written["runs"]) == [f"{n}, {folder.name}" for n, folder in folders.items()]
    assert (output / "step-decay.png").stat().st_size > 10_000
    config = load_config(folders["SGDT"] / "config.yaml")
    assert (config.solver.schedule, config.tr.factor, config.run.log_period) == ("step", 0.01, 1)


def test_recorded_runs_are_drawn_and_their_numbers_written(runs, monkeypatch, tmp_path, capsys):
    output, folders = runs
    call(monkeypatch, "tr-scheduling", "--output", tmp_path, "--run", folders["SGDT"])
    call(monkeypatch, "step-decay", "--output", tmp_path, "--run", *folders.values())
    for name in ("tr-scheduling", "step-decay"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    made = json.loads((output / "step-decay.json").read_text())["runs"]
    read = json.loads((tmp_path / "step-decay.json").read_text())["runs"]
    assert read == made
    assert f"SGDT, {folders['SGDT'].name}  accuracy" in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart(runs, monkeypatch, tmp_path, capsys):
    folders = [shutil.copytree(runs[1]["SGD"], tmp_path / name / "sgd") for name in ("one", "two")]
    call(monkeypatch, "step-sizes", "--output", tmp_path, "--run", *folders)
    labels = {line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[:2]}
    assert labels == {"SGD, one/sgd", "SGD, two/sgd"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tr-scheduling", "--run", "SGD"], ": a run of SGD, which has no TR scheduling"),
        (["tr-scheduling", "--run", "SGDT", "SGD"], "2 folders; tr-scheduling draws at most 1"),
        (["step-sizes", "--run", *["SGD"] * 9], "9 folders; step-sizes draws at most 8"),
        (["step-sizes", "--run", "lost"], "lost: has no config.yaml"),
        (["step-sizes", "--run", "SGD", "--seed", "1"], "--seed is of runs that are made here"),
        (["step-sizes", "--factor", "nan"], "tr.factor='nan': must be in (0, 1]"),
    ],
)
def test_a_mistake_draws_nothing(runs, monkeypatch, tmp_path, capsys, arguments, message):
    arguments = [runs[1].get(text, text) for text in arguments]
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, *arguments, "--output", tmp_path)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_weights_are_not_shown_without_a_checkpoint(runs, monkeypatch, tmp_path, capsys):
    ignored = shutil.ignore_patterns("*.pth")
    shutil.copytree(runs[1]["SGDT"], tmp_path / "a", ignore=ignored)
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "tr-scheduling", "--run", tmp_path / "a", "--output", tmp_path)
    assert "a: has no checkpoint" in capsys.readouterr().err
    call(monkeypatch, "step-sizes", "--run", tmp_path / "a", "--output", tmp_path)
    assert "clipped" not in capsys.readouterr().out
