"""Whole runs, as tools/train_classifier.py makes them, of a few updates."""

import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tr_det.classification.config.reading import load_config
from tr_det.classification.engine.run import evaluate_only, run
from tr_det.runtime.metrics import read_records
from tr_det.runtime.results import read_results

SGDT = ["quant.bits", "W2A2", "solver.optimizer", "SGDT"]


ROOT = Path(__file__).resolve().parents[3]


def qat(*overrides):
    return load_config("qat.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name", "resnet"], r"model\.name='resnet': must be one of"),
        (["model.options", "{deep: 8}"], r"model\.options=.*must be arguments of resnet_cifar"),
        (["model.options", "{num_classes: 2}"], r"options\.num_classes=2: must be 10, as the data"),
        (["data.name", "mnist"], r"data\.name='mnist': must be one of"),
        (["data.name", "cifar10"], r"data\.root='datasets': must be a folder with CIFAR10"),
        (["data.image_size", "16"], r"data\.image_size=16: must be 0 or 8 for digits"),
        (["data.name", "imagenet"], r"data\.root='datasets': must be .*; it does not exist"),
        (["run.device", "tpu9"], r"run\.device='tpu9': must be one of .*what this machine has"),
        (["solver.warmup", "8"], r"solver\.warmup=8: must be below the run's 8 updates"),
        (
            ["model.weights", "library"],
            r"model\.weights='library': must be .*but for depths \[20, 32",
        ),
        ([*SGDT, "tr.gain", "-1"], r"tr\.gain=-1\.0: must be"),
        (["solver.batch_size", "5000"], r"solver\.batch_size=5000: must be at most"),
        (["solver.no_decay", "[fd.*]"], r"solver\.no_decay='fd\.\*': must be a glob over names"),
        (
            ["solver.loss", "distributional", "solver.teacher", "resnet_cifar"],
            r"solver\.teacher_weights='library': must be .*but for depths",
        ),
    ],
)
def test_a_mistake_that_only_a_run_can_find_is_named_by_its_key(folder, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(load_config("fp.yaml", overrides))


def test_results_have_what_training_did_to_the_codes(folder, check_results):
    quantized = run(qat())
    plain = read_results(Path(quantized["paths"]["start"]).parent)
    for results in (quantized, plain):
        check_results(results)
        assert results == read_results(results["paths"]["folder"])
        assert results["metrics"].keys() == {"accuracy", "top5", "loss"}
    rows = read_records(Path(quantized["paths"]["folder"]) / "metrics.json")
    rates = [row["tr/rate"] for row in rows if "tr/rate" in row]
    assert quantized["tr"]["mean_rate"] == pytest.approx(sum(rates) / 8)
    assert quantized["tr"]["running_tr"] == rows[-1]["tr/running"]
    assert quantized["tr"]["first_target"] > quantized["tr"]["last_target"] >= 0
    assert quantized["tr"]["factor"] == 0.01
    layers = [k[: -len("/talr")] for k in rows[-1] if k.startswith("tr_layers") and "/talr" in k]
    tracked = [row for row in rows if "tr/target" in row]
    errors = [abs(row[f"{a}/running"] - row[f"{a}/target"]) for row in tracked for a in layers]
    assert len(errors) == 8 * 6  # a tenth of 8 updates is none
    expected = sum(errors) / len(errors) / (0.01 * 2**0.5)
    assert quantized["tr"]["tracking_error"] == pytest.approx(expected)
    assert plain["tr"] == {}
    assert quantized["cost"]["storage_mb"] < plain["cost"]["storage_mb"]


def tool(*arguments, command=(), program=ROOT / "tools/train_classifier.py", **environment):
    return subprocess.run(
        [sys.executable, *command, str(program), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "OMP_NUM_THREADS": "1"}
        | environment,
        check=False,
    )


def test_a_mistake_on_the_command_line_is_one_line_and_status_2(folder):
    done = tool("--config-file", "fp.yaml", "solver.lrr", "1")
    assert done.returncode == 2
    assert re.fullmatch(r"error: solver\.lrr: unknown key; .*solver\.lr\b.*\n", done.stderr)


@pytest.mark.slow
def test_two_nodes_train_one_model_together_and_a_lost_one_is_replaced(folder, same, final):
    """The program asserts that their weights are equal, and resumes a run of two processes."""
    program = Path(__file__).with_name("two_nodes.py")
    overrides = ["model.pretraining", "", "solver.iterations", "3", "run.checkpoint_period", "2"]
    overrides += ["run.output_dir", "whole", "quant.act_quantizer", "running_minmax"]
    overrides += ["solver.methods", "[freezing, weight_average decay=0.9]"]
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{opened.getsockname()[1]}"

    def node(is_host, **environment):
        options = {"nnodes": 2, "nproc-per-node": 1, "max-restarts": 1, "rdzv-id": "run"}
        options |= {"rdzv-backend": "c10d", "rdzv-endpoint": endpoint, "local-addr": "127.0.0.1"}
        options |= {"rdzv-conf": f"is_host={is_host},keep_alive_interval=1"}
        torchrun = ["-m", "torch.distributed.run", *(f"--{k}={v}" for k, v in options.items())]
        # As docs/coco.md advises.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        arguments = ("--config-file", "qat.yaml", *overrides)
        return threads.submit(tool, *arguments, command=torchrun, program=program, **environment)

    with ThreadPoolExecutor() as threads:
        first, lost = node(True), node(False, LOST_AFTER="2")
        assert lost.result().returncode == -signal.SIGKILL
        done = [run.result() for run in (first, node(False))]
    assert [run.returncode for run in done] == [0, 0], done
    output = "".join(run.stdout for run in done)
    assert output.count("top-1") == 1
    assert output.count("Going on from iteration 2") == 2  # then the program resumes a copy
    metrics = read_records(Path("whole/metrics.json"))
    assert [row["iteration"] for row in metrics] == [0, 1, 2]
    for part in ("model", "optimizer", "scheduler", "iteration"):
        assert same(final("whole")[part], final("stopped")[part]), part
    together = read_results("whole")["metrics"]
    alone = evaluate_only(qat(*overrides))["metrics"]
    assert alone["accuracy"] == together["accuracy"]
    assert alone["loss"] == pytest.approx(together["loss"], rel=1e-5)
