"""The loop, through whole runs."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tr_det.classification.config.reading import load_config
from tr_det.classification.data.datasets import load_data
from tr_det.classification.data.loader import train_batches
from tr_det.classification.engine.run import run
from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.classification.models.build import build_network
from tr_det.runtime.metrics import read_records

SGDT = ["quant.bits", "W2A2", "solver.optimizer", "SGDT"]


def qat(*overrides):
    return load_config("qat.yaml", overrides)


def test_metrics_tell_what_updates_do_to_weights(folder):
    run(qat("solver.iterations", "4", "run.output_dir", "a"))
    rows = read_records(Path("a/metrics.json"))
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    for key in ("loss", "accuracy", "lr", "tr/target", "tr/running", "tr/talr"):
        assert key in rows[2], key
    assert rows[2]["tr/step_size"] >= rows[2]["tr/rate"] / 2 > 0
    assert 0 < rows[2]["tr/distance"] <= 0.5
    assert "tr_layers/blocks.0.conv1/talr" in rows[2]
    assert {"test/accuracy", "test/top5", "test/loss"} < rows[-1].keys()


def test_bfloat16_changes_the_forward_only(folder, final):
    run(load_config("fp.yaml", ["run.output_dir", "a", "run.precision", "bfloat16"]))
    weights = final("a")["model"].values()
    assert all(value.dtype == torch.float32 for value in weights if value.is_floating_point())
    run(load_config("fp.yaml", ["run.output_dir", "b"]))
    assert not torch.equal(final("a")["model"]["fc.weight"], final("b")["model"]["fc.weight"])
    with pytest.raises(ValueError, match=r"run\.precision='float16': must be"):
        run(load_config("fp.yaml", ["run.output_dir", "c", "run.precision", "float16"]))


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise OSError("bad.jpg: cannot be read")


@pytest.mark.parametrize("period", [0, 4])
def test_a_failing_evaluation_does_not_lose_what_was_trained(folder, monkeypatch, period):
    plain, config = load_data, load_config("fp.yaml", ["run.eval_period", str(period)])
    with monkeypatch.context() as patch:
        patch.setattr(
            "tr_det.classification.engine.run.load_data",
            lambda section: dataclasses.replace(plain(section), test=Unreadable()),
        )
        with pytest.raises(OSError, match=r"bad\.jpg"):
            run(config)
    written = "model_0000004" if period else "model_final"
    assert (Path(config.run.output_dir) / f"{written}.pth").is_file()
    assert run(config, resume=True)["metrics"]["accuracy"] >= 0
    rows = read_records(Path(config.run.output_dir) / "metrics.json")
    assert [row["iteration"] for row in rows if "loss" in row] == list(range(8))
    evaluated = [row["iteration"] for row in rows if "test/accuracy" in row]
    assert evaluated == ([3, 7] if period else [7])


def test_a_run_that_is_stopped_after_its_last_evaluation_is_not_evaluated_again(
    folder, monkeypatch
):
    config = load_config("fp.yaml", ["run.output_dir", "a"])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tr_det.classification.engine.run.write_results", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    before = Path("a/metrics.json").read_text()
    monkeypatch.setattr(ClassifierTrainer, "evaluate", lambda _: pytest.fail("again"))
    results = run(config, resume=True)
    assert Path("a/metrics.json").read_text() == before
    last = read_records(Path("a/metrics.json"))[-1]
    assert results["metrics"] == {key: last[f"test/{key}"] for key in ("accuracy", "top5", "loss")}


def test_a_checkpoint_without_a_run_s_state_is_named(folder, stop_at):
    config = load_config("fp.yaml", ["run.output_dir", "a"])
    run(config)
    stop_at(config, "model_0000004.pth", "b")
    path = Path("b/model_0000004.pth")
    torch.save({"model": torch.load(path)["model"]}, path)
    with pytest.raises(
        ValueError, match=r"4\.pth: weights without the state of a run .*optimizer,"
    ):
        run(load_config("fp.yaml", ["run.output_dir", "b"]), resume=True)


def test_the_newest_checkpoints_are_kept_and_the_last_one(folder):
    overrides = ["run.checkpoint_period", "1", "run.keep_checkpoints", "2"]
    run(load_config("fp.yaml", [*overrides, "run.output_dir", "a"]))
    expected = {"model_0000006.pth", "model_0000007.pth", "model_final.pth"}
    assert {path.name for path in Path("a").glob("*.pth*")} == expected


@pytest.mark.parametrize("optimizer", ["SGD", "SGDT"])
def test_a_diverging_run_stops(folder, optimizer):
    overrides = [*SGDT[:2], "solver.optimizer", optimizer, "solver.lr", "1e30"]
    with pytest.raises(FloatingPointError, match=r"NaN or inf|the loss is .* of 8: .*solver\.lr"):
        run(load_config("fp.yaml", overrides))
    assert not list(Path("output").rglob("results.json"))


def test_resuming_requires_the_same_data_and_reports_other_processes(folder, caplog, stop_at):
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
    assert any("began with 2 processes and goes on with 1" in text for text in caplog.messages)


def test_an_update_that_the_float16_scaler_skips_moves_no_schedule(folder):
    config = qat("model.pretraining", "", "run.output_dir", "a")
    data = load_data(config.data)
    trainer = ClassifierTrainer(config, build_network(config, data, published=False), data)
    trainer.scaler = torch.amp.GradScaler("cpu")
    batches = train_batches(data.train, 32, seed=0)
    broken = ((images * float("nan"), labels) for images, labels in batches)
    for stream in (batches, broken, batches):
        trainer._step(stream, logged=False)
    groups = [group for group in trainer.optimizer.param_groups if "talr" in group]
    assert {group["tr_step"] for group in groups} == {trainer.scheduler.last_epoch} == {2}
    assert (trainer.iteration, trainer.attached.step) == (3, 2)


def moved(*overrides):
    """Return the change of all parameters in one update, and its loss on given logits."""
    keys = ["solver.momentum", "0", "solver.weight_decay", "0"]
    config = load_config("fp.yaml", [*keys, *overrides])
    data = load_data(config.data)
    torch.manual_seed(0)
    trainer = ClassifierTrainer(config, build_network(config, data, published=False), data)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer._step(train_batches(data.train, 32, seed=0), logged=False)
    after = trainer.model.parameters()
    change = torch.cat([(p - old).detach().flatten() for p, old in zip(after, before, strict=True)])
    return change, trainer.loss


def test_gradients_are_clipped_to_their_common_norm(folder):
    plain, clipped = moved()[0], moved("solver.clip_norm", "0.01")[0]
    assert plain.norm() > 10 * clipped.norm()
    torch.testing.assert_close(clipped.norm().item(), 0.05 * 0.01, rtol=1e-3, atol=0)
    assert torch.cosine_similarity(clipped, plain, dim=0) > 0.999


def test_labels_are_smoothed_towards_all_classes(folder):
    loss = moved("solver.label_smoothing", "0.1")[1]
    log_p = torch.randn(5, 10).log_softmax(1)
    labels = torch.arange(5)
    expected = -0.9 * log_p[labels, labels].mean() - 0.1 * log_p.mean()
    torch.testing.assert_close(loss(log_p, torch.empty(0), labels), expected)
