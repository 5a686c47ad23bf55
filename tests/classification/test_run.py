"""Whole runs, as tools/train_classifier.py makes them, at a few updates."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tr_det.classification.build import build_network
from tr_det.classification.config_file import load_config
from tr_det.classification.datasets import load_data
from tr_det.classification.evaluate_only import evaluate_only
from tr_det.classification.loader import train_batches
from tr_det.classification.results import read_results, table
from tr_det.classification.run import run
from tr_det.classification.trainer import ClassifierTrainer
from tr_det.training.lock import only_writer
from tr_det.training.metrics import read_records

SGDT = ["quant.bits", "W2A2", "solver.optimizer", "SGDT"]
ROOT = Path(__file__).resolve().parents[2]
TINY = """
model: {name: resnet_cifar, options: {depth: 8, width: 4}}
solver: {batch_size: 32, iterations: 8, lr: 0.05}
run: {log_period: 1, checkpoint_period: 4, device: cpu}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fp.yaml").write_text(TINY)
    (tmp_path / "qat.yaml").write_text(
        "_BASE_: fp.yaml\nmodel: {pretraining: fp.yaml}\nquant: {bits: W2A2}\n"
        "solver: {optimizer: SGDT}\ntr: {factor: 0.01, update: pi, momentum: -1}\n"
    )
    return tmp_path


def qat(*overrides):
    return load_config("qat.yaml", overrides)


def stop_at(config, name, target):
    """Make a folder as it was when a run had written a checkpoint, with metrics past it."""
    shutil.copytree(config.run.output_dir, target)
    (Path(target) / "model_final.pth").unlink()
    (Path(target) / "last_checkpoint").write_text(name)


def same(first, second):
    """Return whether nested states are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def final(folder):
    return torch.load(Path(folder) / "model_final.pth", weights_only=True)


@pytest.mark.parametrize("optimizer", ["SGDT", "AdamWT", "Adam"])
def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_not_stopped(folder, optimizer):
    config = qat("solver.optimizer", optimizer, "run.output_dir", "whole")
    whole = run(config)
    stop_at(config, "model_0000004.pth", "stopped")
    resumed = run(
        qat("solver.optimizer", optimizer, "run.output_dir", "stopped", "data.workers", "1"),
        resume=True,
    )
    first, second = final("whole"), final("stopped")
    assert first["iteration"] == second["iteration"] == 8
    for part in ("model", "optimizer", "scheduler"):
        assert same(first[part], second[part]), part
    assert resumed[-1]["accuracy"] == whole[-1]["accuracy"]
    metrics = [
        [
            {k: v for k, v in json.loads(line).items() if k != "eta_seconds"}
            for line in (Path(name) / "metrics.json").read_text().splitlines()
        ]
        for name in ("whole", "stopped")
    ]
    assert metrics[0] == metrics[1]


def test_what_a_run_builds_on_is_trained_once_and_heads_the_table(folder):
    rows = run(qat())
    assert [(row["bits"], row["optimizer"]) for row in rows] == [("FP", "SGD"), ("W2A2", "SGDT")]
    fp = Path(rows[0]["folder"]) / "model_final.pth"
    written = fp.stat().st_mtime_ns
    again = run(qat("run.output_dir", "again", "run.seed", "1"))
    assert fp.stat().st_mtime_ns == written
    assert again[0] == rows[0]
    lines = table(again).splitlines()
    assert len(lines) == 6
    assert lines[3].split()[:3] == ["resnet_cifar", "FP", "SGD"]
    (folder / "fp.yaml").write_text(TINY.replace("0.05", "0.06"))
    with pytest.raises(ValueError, match=r"solver\.lr=0\.06: .*fp_fp.* is of a run with 0\.05"):
        run(qat("run.output_dir", "third"))


def test_metrics_tell_what_updates_do_to_weights(folder):
    run(qat("solver.iterations", "4"))
    rows = [
        json.loads(line)
        for line in Path("output/classification")
        .rglob("qat_w2a2/metrics.json")
        .__next__()
        .read_text()
        .splitlines()
    ]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 3]
    for key in ("loss", "accuracy", "lr", "tr/target", "tr/running", "tr/talr"):
        assert key in rows[2], key
    assert rows[2]["tr/step_size"] >= rows[2]["tr/rate"] / 2 > 0
    assert 0 < rows[2]["tr/distance"] <= 0.5
    assert "tr_layers/blocks.0.conv1/talr" in rows[2]
    assert {"test/accuracy", "test/top5", "test/loss"} < rows[-1].keys()


def test_evaluation_alone_gives_what_training_ended_with(folder):
    trained = run(qat())[-1]
    evaluated = evaluate_only(qat())
    assert len(evaluated) == 1
    assert (evaluated[0]["accuracy"], evaluated[0]["loss"]) == (
        trained["accuracy"],
        trained["loss"],
    )


def test_a_full_precision_checkpoint_is_calibrated_before_it_is_evaluated(folder):
    learnt = run(load_config("fp.yaml", ["run.output_dir", "fp", "solver.iterations", "60"]))[0]
    weights = ["model.pretraining", "", "model.weights", "fp/model_final.pth"]
    row = evaluate_only(qat(*weights, "quant.bits", "W8A8"))[0]
    assert learnt["accuracy"] > 40
    assert row["accuracy"] > learnt["accuracy"] - 15


def test_evaluation_without_any_checkpoint_is_refused(folder):
    with pytest.raises(ValueError, match=r"--eval-only: .*has no checkpoint"):
        evaluate_only(qat())


def test_going_on_with_another_config_is_refused_by_key(folder):
    run(load_config("fp.yaml", ["run.output_dir", "a"]))
    changed = load_config("fp.yaml", ["run.output_dir", "a", "solver.lr", "0.2"])
    with pytest.raises(
        ValueError, match=r"solver\.lr=0\.2: .*of a run with 0\.05; must be the same"
    ):
        run(changed, resume=True)


def test_bfloat16_changes_the_forward_only(folder):
    config = load_config("fp.yaml", ["run.output_dir", "a", "run.precision", "bfloat16"])
    run(config)
    assert all(
        value.dtype == torch.float32
        for key, value in final("a")["model"].items()
        if value.is_floating_point()
    )
    run(load_config("fp.yaml", ["run.output_dir", "b"]))
    assert not torch.equal(final("a")["model"]["fc.weight"], final("b")["model"]["fc.weight"])
    with pytest.raises(ValueError, match=r"run\.precision='float16': must be"):
        run(load_config("fp.yaml", ["run.output_dir", "c", "run.precision", "float16"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name", "resnet"], r"model\.name='resnet': must be one of"),
        (["model.options", "{deep: 8}"], r"model\.options=.*must be arguments of resnet_cifar"),
        (["data.name", "mnist"], r"data\.name='mnist': must be one of"),
        (["data.name", "cifar10"], r"data\.root='datasets': must be a folder with CIFAR-10"),
        (["data.name", "imagenet"], r"data\.root='datasets': has no val/; must have train/"),
        (["run.device", "tpu9"], r"run\.device='tpu9': must be one of .*what this machine has"),
        (["solver.warmup", "8"], r"solver\.warmup=8: must be below the run's 8 updates"),
        (["model.weights", "library"], r"model\.weights='library': nobody publishes"),
        ([*SGDT, "tr.gain", "-1"], r"tr\.gain=-1\.0: must be"),
        ([*SGDT, "tr.update", "bogus"], r"tr\.update='bogus': must be one of"),
        (["run.device", "meta"], r"run\.device='meta': must be one of \['auto', 'cpu'"),
        (["model.options", "{width: -1}"], r"model\.options=\{'width': -1\}: must be arguments"),
        (["solver.batch_size", "5000"], r"solver\.batch_size=5000: must be at most"),
        (["solver.no_decay", "[fd.*]"], r"solver\.no_decay='fd\.\*': must be a glob over names"),
        (
            ["solver.loss", "distributional", "solver.teacher", "resnet_cifar"],
            r"solver\.teacher_weights='library': nobody publishes",
        ),
    ],
)
def test_what_only_a_run_can_find_wrong_is_told_by_key(folder, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(load_config("fp.yaml", overrides))


def tool(*arguments, command=(), program=ROOT / "tools/train_classifier.py"):
    return subprocess.run(
        [sys.executable, *command, str(program), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_a_mistake_on_the_command_line_is_one_line_and_status_2(folder):
    done = tool("--config-file", "fp.yaml", "solver.lrr", "1")
    assert done.returncode == 2
    assert done.stderr == "error: solver.lrr: unknown key; did you mean solver.lr?\n"


def test_torchrun_s_processes_train_one_model_together(folder):
    """The program holds their weights to be equal; a run that is stopped and resumed is its own."""
    program = Path(__file__).with_name("two_processes.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    overrides = ["model.pretraining", "", "solver.iterations", "3", "run.checkpoint_period", "2"]
    overrides += ["run.output_dir", "whole"]
    done = tool("--config-file", "qat.yaml", *overrides, command=torchrun, program=program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 1
    metrics = read_records(Path("whole/metrics.json"))
    assert [row["iteration"] for row in metrics] == [0, 1, 2, 2]
    for part in ("model", "optimizer", "scheduler", "iteration"):
        assert same(final("whole")[part], final("stopped")[part]), part
    (row,) = read_results("whole")
    (alone,) = evaluate_only(qat(*overrides))
    assert alone["accuracy"] == row["accuracy"]
    assert alone["loss"] == pytest.approx(row["loss"], rel=1e-5)


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise OSError("bad.jpg: cannot be read")


@pytest.mark.parametrize("period", [0, 4])
def test_a_failing_evaluation_does_not_lose_what_was_trained(folder, monkeypatch, period):
    plain, config = load_data, load_config("fp.yaml", ["run.eval_period", str(period)])
    monkeypatch.setattr(
        "tr_det.classification.run.load_data",
        lambda section: dataclasses.replace(plain(section), test=Unreadable()),
    )
    with pytest.raises(OSError, match=r"bad\.jpg"):
        run(config)
    written = "model_0000004" if period else "model_final"
    assert (Path(config.run.output_dir) / f"{written}.pth").is_file()
    monkeypatch.undo()
    os.chdir(folder)
    assert run(config, resume=True)[0]["accuracy"] >= 0
    rows = read_records(Path(config.run.output_dir) / "metrics.json")
    assert [row["iteration"] for row in rows if "loss" in row] == list(range(8))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tr.update", "bogus"], r"tr\.update='bogus'"),
        (["run.precision", "float16"], r"run\.precision='float16'"),
        (["solver.batch_size", "5000"], r"solver\.batch_size=5000"),
        (["model.options", "{depth: 14, width: 4}"], r"model\.options=.* must be \{'depth': 8,"),
        (["data.name", "cifar10"], r"data\.name='cifar10': must be 'digits' as in .*fp\.yaml"),
        (["data.image_size", "8"], r"data\.image_size=8: must be 0 as in .*fp\.yaml"),
        (["model.pretraining", "w4a4.yaml"], r"quant\.bits='W2A2': must be reached from W4A4"),
        (["run.output_dir", "output/classification/here/fp_fp"], r"run\.output_dir=.*other than"),
    ],
)
def test_a_mistake_shows_before_the_pretraining_is_trained(folder, overrides, message):
    (folder / "w4a4.yaml").write_text("_BASE_: fp.yaml\nquant: {bits: W4A4}\n")
    overrides = [text.replace("here", folder.name) for text in overrides]
    with pytest.raises(ValueError, match=message):
        run(qat(*overrides))
    assert not list(folder.rglob("*.pth"))


@pytest.mark.parametrize("bits", ["W1A1", "W2A2"])
def test_a_binary_network_starts_from_real_weights_with_inputs_of_its_own_bits(folder, bits):
    """As the recipes of ReActNet do, with the loss and the teacher of ImageNet's."""
    learnt = ["model.options", "{}", "run.output_dir", "teacher", "solver.iterations", "1"]
    run(load_config("fp.yaml", learnt))
    tiny = TINY.replace("resnet_cifar, options: {depth: 8, width: 4}", REACTNET)
    tiny = tiny.replace("iterations: 8", "iterations: 2")
    (folder / "real.yaml").write_text(f"{tiny}quant: {{bits: W32A1}}\n")
    (folder / "binary.yaml").write_text(
        "_BASE_: real.yaml\nmodel: {pretraining: real.yaml}\n"
        "solver: {loss: distributional, teacher: resnet_cifar, "
        "teacher_weights: teacher/model_final.pth}\n"
    )
    rows = run(load_config("binary.yaml", ["quant.bits", bits]))
    assert [row["bits"] for row in rows] == [f"W32A{bits[-1]}", bits]


REACTNET = "reactnet18, options: {small_images: true, width: 4}"


def test_evaluation_takes_the_trained_weights_unless_others_are_named(folder, monkeypatch, caplog):
    import train_classifier

    def rows(*options):
        found = []
        arguments = ["--config-file", "own.yaml", "--eval-only", *options]
        monkeypatch.setattr("sys.argv", ["train_classifier.py", *arguments])
        monkeypatch.setattr(train_classifier, "table", lambda rows: found.extend(rows))
        with caplog.at_level("INFO"):
            train_classifier.main()
        return found[0], caplog.messages[-1]

    run(load_config("fp.yaml", ["run.output_dir", "fp"]))
    (folder / "own.yaml").write_text(
        "_BASE_: fp.yaml\nmodel: {weights: fp/model_final.pth}\nrun: {output_dir: own}\n"
    )
    start, told = rows()
    assert (start["optimizer"], told) == ("-", "Evaluating fp/model_final.pth")
    trained = run(load_config("own.yaml"))[0]
    assert trained["loss"] != start["loss"]
    again, told = rows()
    assert (again["loss"], again["optimizer"]) == (trained["loss"], "SGD")
    assert told == "Evaluating own/model_final.pth"
    assert rows("model.weights", "fp/model_final.pth")[0]["loss"] == start["loss"]


def test_another_config_s_folder_is_left_alone(folder):
    run(load_config("fp.yaml", ["run.output_dir", "a"]))
    before = {path: path.read_bytes() for path in Path("a").iterdir()}
    with pytest.raises(ValueError, match=r"run\.seed=1: a is of a run with 0; must be the same"):
        run(load_config("fp.yaml", ["run.output_dir", "a", "run.seed", "1"]))
    assert {path: path.read_bytes() for path in Path("a").iterdir()} == before
    Path("a/config.yaml").write_text("MODEL: {META_ARCHITECTURE: RetinaNet}\n")
    with pytest.raises(ValueError, match=r"^a: not of a run of tools/train_classifier\.py"):
        run(load_config("fp.yaml", ["run.output_dir", "a"]))


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
    assert any(text.endswith("starting anew") for text in caplog.messages)
    assert again[0]["loss"] == first[0]["loss"]


def test_a_finished_run_is_not_touched_by_resuming_it(folder):
    config = load_config("fp.yaml")
    first = run(config)
    before = {path: path.read_bytes() for path in Path(config.run.output_dir).iterdir()}
    assert run(config, resume=True) == first
    assert {path: path.read_bytes() for path in Path(config.run.output_dir).iterdir()} == before


def test_runs_started_together_train_their_pretraining_once(folder, monkeypatch):
    trained, plain = [], ClassifierTrainer.train

    def train(trainer):
        trained.append(trainer.config.quant.bits)
        return plain(trainer)

    @contextlib.contextmanager
    def another_first(path, wait=False):
        if wait:
            run(load_config("fp.yaml"))
        with only_writer(path):
            yield

    monkeypatch.setattr(ClassifierTrainer, "train", train)
    monkeypatch.setattr("tr_det.classification.run.only_writer", another_first)
    rows = run(qat())
    assert trained == ["FP", "W2A2"]
    assert [row["bits"] for row in rows] == trained


def test_a_folder_has_one_writer(folder):
    config = load_config("fp.yaml", ["run.output_dir", "a"])
    with only_writer("a"), pytest.raises(ValueError, match=r"run\.output_dir='a': another run"):
        run(config)


@pytest.mark.parametrize(("kept", "numbers"), [(2, [6, 7]), (0, [1, 2, 3, 4, 5, 6, 7])])
def test_the_newest_checkpoints_are_kept_and_the_last_one(folder, kept, numbers):
    overrides = ["run.checkpoint_period", "1", "run.keep_checkpoints", str(kept)]
    run(load_config("fp.yaml", [*overrides, "run.output_dir", "a"]))
    expected = {f"model_{number:07d}.pth" for number in numbers} | {"model_final.pth"}
    assert {path.name for path in Path("a").glob("*.pth*")} == expected


@pytest.mark.parametrize("optimizer", ["SGD", "SGDT"])
def test_a_diverging_run_stops(folder, optimizer):
    overrides = [*SGDT[:2], "solver.optimizer", optimizer, "solver.lr", "1e30"]
    with pytest.raises(FloatingPointError, match=r"NaN or inf|the loss is .* of 8: .*solver\.lr"):
        run(load_config("fp.yaml", overrides))
    assert not list(Path("output").rglob("results.json"))


def test_going_on_asks_for_the_same_data_and_tells_of_other_processes(folder, caplog):
    config = load_config("fp.yaml", ["run.output_dir", "a"])
    run(config)
    stop_at(config, "model_0000004.pth", "stopped")
    config = load_config("fp.yaml", ["run.output_dir", "stopped"])
    path = Path("stopped/model_0000004.pth")
    stored = torch.load(path, weights_only=True)
    torch.save({**stored, "images": 9}, path)
    with pytest.raises(ValueError, match=r"data\.root='datasets': gives \d+ images, .* with 9;"):
        run(config, resume=True)
    torch.save({**stored, "processes": 2}, path)
    run(config, resume=True)
    assert any("Begun by 2 processes, going on with 1" in text for text in caplog.messages)


def test_an_update_that_float16_s_scaler_leaves_out_moves_no_schedule(folder):
    config = qat("model.pretraining", "", "run.output_dir", "a")
    data = load_data(config.data)
    trainer = ClassifierTrainer(config, build_network(config, data, published=False)[0], data)
    trainer.scaler = torch.amp.GradScaler("cpu")
    batches = train_batches(data.train, 32, seed=0)
    broken = ((images * float("nan"), labels) for images, labels in batches)
    for stream in (batches, broken, batches):
        trainer._step(stream, logged=False)
    groups = [group for group in trainer.optimizer.param_groups if "talr" in group]
    assert {group["tr_step"] for group in groups} == {trainer.scheduler.last_epoch} == {2}
    assert trainer.iteration == 3
