import pytest

from tr_det.classification.config.reading import load_config
from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.study.grid import COMPARED, STUDIES, groups, settings
from tr_det.study.report import table
from tr_det.study.runner import CONFIGS, as_overrides, run_cell, run_study


@pytest.fixture
def trained(monkeypatch):
    """Return the folders of the runs that a test trains."""
    folders, train = [], ClassifierTrainer.train

    def note(trainer):
        folders.append(trainer.config.run.output_dir)
        return train(trainer)

    monkeypatch.setattr(ClassifierTrainer, "train", note)
    return folders


def test_a_study_trains_each_run_once_and_compares_seed_by_seed(output, trained, monkeypatch):
    group = {"plain": settings("SGD"), "SGDT, lambda auto": settings(more={"tr.factor": "auto"})}
    monkeypatch.setitem(STUDIES, "paired", [group])
    rows = run_study("paired", [20], 2, output)
    start, study = [f"{output}/full_precision/seed{n}" for n in (0, 1)], f"{output}/paired"
    cells = [f"{study}/{name}_20_updates" for name in ("plain", "SGDT_lambda_auto")]
    assert set(trained) - set(start) == {f"{cell}/seed{n}" for cell in cells for n in (0, 1)}
    assert rows[1]["difference"] == [
        own - plain for own, plain in zip(rows[1]["accuracy"], rows[0]["accuracy"])
    ]
    assert len(rows[1]["lambda"]) == 2
    before = len(trained)
    assert run_study("paired", [20], 2, output) == rows
    assert len(trained) == before
    lines = table(rows, "plain").splitlines()
    assert "paired difference from plain | lambda found | mean abs(K - R)" in lines[0]
    assert lines[2].startswith("| plain | ")
    assert lines[2].endswith(" | - | - | - | - |")


def test_seeds_are_different_runs_and_one_seed_gives_one_result(output, cells, tmp_path):
    def accuracies(seed, folder):
        keys = settings(more={"solver.iterations": 5})
        return run_cell(tmp_path / folder, keys, seed, output).step_size.values.tolist()

    first = accuracies(0, "a")
    assert accuracies(0, "b") == first
    assert accuracies(1, "c") != first


def test_a_folder_of_a_run_with_other_settings_is_refused(cells, output):
    with pytest.raises(ValueError, match=r"solver\.lr=0\.2: .*SGD.* is of a run with 0\.1"):
        run_cell(cells["SGD"], settings("SGD", more={"solver.lr": 0.2}), 0, output)


@pytest.mark.parametrize("study", STUDIES)
def test_settings_of_a_study_are_configs_that_differ(study):
    seen = set()
    found = groups(study, 600)
    for label, keys in [pair for group in found for pair in group.items()]:
        config = load_config(CONFIGS / "resnet8_sgd.yaml", as_overrides(keys))
        plain = not config.solver.scheduled
        assert plain == (not config.solver.optimizer.endswith("T"))
        assert str(config) not in seen, label
        seen.add(str(config))
    assert len(seen) == {"paired": 16, "tuned": 48, "auto-factor": 20}.get(study, len(seen))
    assert len(seen) >= 4
    assert study not in COMPARED or min(map(len, found)) > 1
