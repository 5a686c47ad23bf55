"""Whole runs, as tools/train_classifier.py makes them, at a few updates."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tr_det.classification.config_file import load_config
from tr_det.classification.datasets import load_data
from tr_det.classification.run import run, table
from tr_det.training.metrics import read_records

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
    with pytest.raises(
        ValueError, match=r"solver\.lr=0\.06: .*fp_fp.*of a run with 0\.05|solver\.lr=0\.06"
    ):
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
    evaluated = run(qat(), eval_only=True)
    assert len(evaluated) == 1
    assert (evaluated[0]["accuracy"], evaluated[0]["loss"]) == (
        trained["accuracy"],
        trained["loss"],
    )


def test_a_full_precision_checkpoint_is_calibrated_before_it_is_evaluated(folder):
    learnt = run(load_config("fp.yaml", ["run.output_dir", "fp", "solver.iterations", "60"]))[0]
    weights = ["model.pretraining", "", "model.weights", "fp/model_final.pth"]
    row = run(qat(*weights, "quant.bits", "W8A8"), eval_only=True)[0]
    assert learnt["accuracy"] > 40
    assert row["accuracy"] > learnt["accuracy"] - 15


def test_evaluation_without_any_checkpoint_is_refused(folder):
    with pytest.raises(ValueError, match=r"--eval-only: .*has no checkpoint"):
        run(qat(), eval_only=True)


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
        (["data.name", "imagenet"], r"data\.root='datasets': must have a folder train/"),
        (["run.device", "tpu9"], r"run\.device='tpu9': must be auto, cpu"),
        (["solver.warmup", "8"], r"solver\.warmup=8: must be below the run's 8 updates"),
        (["model.weights", "library"], r"model\.weights='library': nobody publishes"),
        (["solver.optimizer", "SGDT", "tr.gain", "-1"], r"tr\.gain=-1\.0: must be"),
    ],
)
def test_what_only_a_run_can_find_wrong_is_told_by_key(folder, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(load_config("fp.yaml", overrides))


def tool(*arguments, command=()):
    return subprocess.run(
        [sys.executable, *command, str(ROOT / "tools/train_classifier.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_a_mistake_on_the_command_line_is_one_line_and_status_2(folder):
    done = tool("--config-file", "fp.yaml", "solver.lrr", "1")
    assert done.returncode == 2
    assert done.stderr == "error: solver.lrr: unknown key; did you mean solver.lr?\n"


def test_torchrun_s_processes_train_one_model_together(folder):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    overrides = ["model.pretraining", "", "solver.iterations", "3"]
    done = tool("--config-file", "qat.yaml", *overrides, command=torchrun)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 1
    metrics = next(Path("output").rglob("qat_w2a2/metrics.json")).read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in metrics] == [0, 1, 2, 2]


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
