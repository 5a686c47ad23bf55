"""Whose an output folder is, through whole runs."""

from pathlib import Path

import pytest

from tr_det.classification.config.file import load_config
from tr_det.classification.engine.run import run
from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.runtime.processes import only_writer


def test_another_config_s_folder_is_left_alone(folder):
    run(load_config("fp.yaml", ["run.output_dir", "a"]))
    before = {path: path.read_bytes() for path in Path("a").iterdir()}
    with pytest.raises(ValueError, match=r"run\.seed=1: a is of a run with 0; must be the same"):
        run(load_config("fp.yaml", ["run.output_dir", "a", "run.seed", "1"]))
    assert {path: path.read_bytes() for path in Path("a").iterdir()} == before
    Path("a/config.yaml").write_text("MODEL: {META_ARCHITECTURE: RetinaNet}\n")
    with pytest.raises(ValueError, match=r"^a: not of a run of tools/train_classifier\.py"):
        run(load_config("fp.yaml", ["run.output_dir", "a"]))


def test_going_on_with_another_config_is_refused_by_key(folder):
    run(load_config("fp.yaml", ["run.output_dir", "a"]))
    changed = load_config("fp.yaml", ["run.output_dir", "a", "solver.lr", "0.2"])
    with pytest.raises(
        ValueError, match=r"solver\.lr=0\.2: .*of a run with 0\.05; must be the same"
    ):
        run(changed, resume=True)


def test_a_pretraining_may_move_but_not_go(folder):
    (folder / "moved.yaml").write_text((folder / "fp.yaml").read_text())
    run(load_config("qat.yaml", ["run.output_dir", "a"]))
    moved = load_config("qat.yaml", ["run.output_dir", "a", "model.pretraining", "moved.yaml"])
    assert run(moved, resume=True)
    without = load_config("qat.yaml", ["run.output_dir", "a", "model.pretraining", ""])
    with pytest.raises(ValueError, match=r"model\.pretraining='': .* with 'fp\.yaml'"):
        run(without, resume=True)


def test_starting_anew_leaves_nothing_of_the_old_run_to_go_on_from(folder, monkeypatch, caplog):
    config = load_config("fp.yaml")
    first = run(config)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    left = {path.name for path in Path(config.run.output_dir).iterdir()}
    assert not left & {"last_checkpoint", "results.json", "model_final.pth", "model_0000004.pth"}
    with caplog.at_level("INFO"):
        again = run(config, resume=True)
    assert any(text.endswith("starting from the beginning") for text in caplog.messages)
    assert again["metrics"] == first["metrics"]


def test_a_finished_run_is_not_touched_by_resuming_it(folder):
    config = load_config("fp.yaml")
    first = run(config)
    before = {path: path.read_bytes() for path in Path(config.run.output_dir).iterdir()}
    assert run(config, resume=True) == first
    assert {path: path.read_bytes() for path in Path(config.run.output_dir).iterdir()} == before


def test_a_folder_has_one_writer(folder):
    config = load_config("fp.yaml", ["run.output_dir", "a"])
    with only_writer("a"), pytest.raises(ValueError, match=r"run\.output_dir='a': another run"):
        run(config)
