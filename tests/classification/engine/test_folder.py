"""Which run may use an output folder, through whole runs."""

from pathlib import Path

import pytest

from tr_det.classification.config.reading import load_config
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


def test_a_resumed_run_may_move_its_pretraining_but_not_drop_it(folder):
    (folder / "moved.yaml").write_text((folder / "fp.yaml").read_text())
    run(load_config("qat.yaml", ["run.output_dir", "a"]))
    moved = load_config("qat.yaml", ["run.output_dir", "a", "model.pretraining", "moved.yaml"])
    assert run(moved, resume=True)
    without = load_config("qat.yaml", ["run.output_dir", "a", "model.pretraining", ""])
    with pytest.raises(ValueError, match=r"model\.pretraining='': .* with '.*fp\.yaml'"):
        run(without, resume=True)


def test_starting_over_leaves_nothing_of_the_old_run_to_resume(folder, monkeypatch, caplog):
    config = load_config("fp.yaml")
    first = run(config)
    before = {path.name: path.read_bytes() for path in Path(config.run.output_dir).glob("[!.]*")}

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClassifierTrainer, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    left = {path.name for path in Path(config.run.output_dir).iterdir()}
    assert not left & {"last_checkpoint", "results.json", "model_final.pth", "model_0000004.pth"}
    moved = Path(config.run.output_dir) / "earlier_1"
    assert {path.name: path.read_bytes() for path in moved.glob("[!.]*")} == before
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


def test_a_run_of_an_older_version_is_finished_again(folder):
    """Its results.json is a list; a copied folder may lack config.yaml."""
    config = load_config("fp.yaml")
    first = run(config)
    output = Path(config.run.output_dir)
    (output / "results.json").write_text("[{}]")
    (output / "config.yaml").unlink()
    assert run(config, resume=True)["metrics"] == first["metrics"]


def test_a_folder_has_one_writer(folder):
    config = load_config("fp.yaml", ["run.output_dir", "a"])
    refused = pytest.raises(ValueError, match=r"run\.output_dir='a': another run")
    with only_writer("a", "x"), refused:
        run(config)
