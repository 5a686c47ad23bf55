"""The benchmarks run at tiny size and write tables and conditions."""

import json
import sys
from functools import partial

import benchmark
import pytest
import torch
from benchmarks import fake_quant
from benchmarks.measure import Settings, alternate, kept_megabytes, timings
from benchmarks.networks import variants


def run(monkeypatch, folder, *arguments):
    options = ["--tiny", "--rounds", "1", "--threads", "1", "--device", "cpu"]
    command = ["benchmark.py", *arguments, *options, "--output", str(folder)]
    monkeypatch.setattr(sys, "argv", command)
    once = partial(Settings, warm_up=0, sample_seconds=0)
    monkeypatch.setattr(benchmark, "Settings", once)
    benchmark.main()


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmark.BENCHMARKS)
def test_a_benchmark_writes_a_table_and_every_sample(monkeypatch, tmp_path, capsys, name) -> None:
    run(monkeypatch, tmp_path, name)
    stored = json.loads((tmp_path / f"{name}-cpu.json").read_text())
    text = (tmp_path / f"{name}-cpu.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert stored["conditions"]["threads"] == 1
    assert stored["conditions"]["versions"]["torch"]
    for row in stored["rows"]:
        if name != "exported-codes":  # which counts
            assert len(row["_seconds"]) == 1
            assert all(second > 0 for second in row["_seconds"])
    assert "_seconds" not in text
    assert text.count("\n| ") == len(stored["rows"]) + 2  # head, rule


def test_contestants_of_the_training_step_do_what_their_names_say() -> None:
    tasks = variants("resnet20", "cpu", tiny=True)
    losses = {name: task.forward() for name, task in tasks.items()}
    assert losses["tr_det W4A4"].item() == losses["tr_det W4A4, recomputed inputs"].item()
    assert losses["full precision"].item() != losses["tr_det W4A4"].item()
    assert losses["tr_det W4A4, LSQ"].item() != losses["tr_det W4A4"].item()


def test_all_contestants_fake_quantize_to_the_same_levels() -> None:
    x = torch.linspace(0.0, 2.5, 97)  # no ties
    step, results = fake_quant.SCALE / 16, {}
    for name, (quantize, _) in fake_quant._contestants("cpu").items():
        out = quantize(x.clone().requires_grad_()).detach()
        fixed = name in (fake_quant.OURS, "tr_det, frozen scale") or "unfused" in name
        results[name] = out * 16 * step if fixed else out
    expected = results.pop(fake_quant.OURS)
    assert len(results) >= 5
    for name, values in results.items():
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5, msg=name)


def test_contestants_run_in_turns_and_ratios_are_within_a_turn() -> None:
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = alternate(calls, Settings("cpu", rounds=3, warm_up=1, sample_seconds=0))
    assert "".join(order) == "aabb" + "ab" * 4
    assert [len(times) for times in samples.values()] == [3, 3]
    row = timings({"a": [2.0, 6.0, 8.0], "b": [1.0, 2.0, 2.0]}, "b", "over b")["a"]
    assert (row["median, ms"], row["over b"]) == (6000.0, 3.0)


def test_kept_memory_counts_what_backward_will_need() -> None:
    x = torch.rand(250_000, requires_grad=True)
    assert kept_megabytes(lambda: x.exp().sum(), "cpu") == pytest.approx(1.0, abs=0.01)
    with torch.no_grad():
        assert kept_megabytes(lambda: x.exp().sum(), "cpu") == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("arguments", [["nothing"], ["--rounds", "0"], ["--threads", "0"]])
def test_bad_arguments_are_refused(monkeypatch, arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
