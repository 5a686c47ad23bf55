"""The demo's table, its strict and atomic JSON, and the TR curves read back from metrics.json."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tr_det.detection.demo.report import (
    read_metrics,
    results_table,
    tr_series,
)
from tr_det.runtime.files import write_json


def metrics(ap: float) -> dict[str, float]:
    return {
        "AP": ap,
        "AP50": ap + 20,
        "AP75": ap + 1,
        "APs": ap - 30,
        "APm": ap + 2,
        "APl": ap + 4,
        "AP-0": 1.0,
    }


def complete_results() -> dict:
    return {
        "fp": metrics(57.84),
        "before_qat": metrics(31.23),
        "after_qat": metrics(56.91),
        "tr": {
            "iteration": [19, 39, 59],
            "target": [0.02, 0.01, 0.0],
            "running": [0.015, 0.012, 0.0004],
            "talr": [0.01, 0.02, 0.01],
        },
        "storage_mb": {"fp": 44.8, "quantized": 5.6},
        "seconds": {
            "qat": 310.4,
            "total": 456.78,
            "dataset": 4.25,
            "sleeping": 1.0,
            "fp_eval": 20.1,
        },
        "weight_bits": 4,
        "act_bits": 3,
        "optimizer": "SGDT",
    }


def cells(table: str, start: str) -> list[str]:
    """The numbers of the one row that starts so."""
    (line,) = (line for line in table.splitlines() if line.startswith(start))
    return line.split()[-7:]


def note(table: str, label: str) -> str:
    """The text beside a label under the table, with its continuation lines."""
    lines = table.splitlines()
    (first,) = (i for i, line in enumerate(lines) if line.startswith(label + "  "))
    text = [lines[first].removeprefix(label).strip()]
    for line in lines[first + 1 :]:
        if not line.startswith(" "):
            break
        text.append(line.strip())
    return " ".join(text)


# ------------------------------------------------------------------------------------- read_metrics


def test_resumed_and_truncated_metrics(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(
        '{"iteration": 19, "tr/running": 0.1, "only_first": 1}\n'
        '{"iteration": 59, "tr/running": 0.3, "stale": 1}\n'
        '{"iteration": 39, "tr/running": NaN, "loss": Infinity}\n'
        "\n"
        '{"iteration": 59, "tr/running": 0.35}\n'
        '{"no_iteration": 3}\n'
        '{"iteration": 79, "tr/runn'
    )
    rows = read_metrics(path)
    assert [row["iteration"] for row in rows] == [19, 39, 59]
    assert rows[0] == {"iteration": 19, "tr/running": 0.1, "only_first": 1}
    assert math.isnan(rows[1]["tr/running"])
    assert rows[1]["loss"] == math.inf
    assert rows[2] == {"iteration": 59, "tr/running": 0.35}


def test_the_last_line_counts_without_its_newline(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\n{"iteration": 2}')
    assert [row["iteration"] for row in read_metrics(path)] == [1, 2]


def test_a_record_glued_to_half_a_record_is_kept(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(
        '{"iteration": 1, "lo{"iteration": 2, "loss": 3}\n'
        '{"iteration": 4}{"iteration": 5}\n'
        '{"iteration": 6}\n'
    )
    rows = read_metrics(path)
    assert rows == [
        {"iteration": 2, "loss": 3},
        {"iteration": 4},
        {"iteration": 5},
        {"iteration": 6},
    ]


def test_unreadable_lines_are_counted_aloud_but_a_cut_last_line_is_not(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    path.write_bytes(b'{"iteration": 1}\n\x00\x00\xff\n[1]\n{"iteration": 2}\n{"iter')
    assert [row["iteration"] for row in read_metrics(path)] == [1, 2]
    (record,) = caplog.records
    assert "ignored 2 unreadable" in record.getMessage()

    caplog.clear()
    path.write_text('{"iteration": 1}\n{"iter')
    read_metrics(path)
    assert not caplog.records


def test_missing_and_empty_metrics(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text("")
    assert read_metrics(tmp_path / "metrics.json") == []


# ---------------------------------------------------------------------------------------- tr_series


def test_series_of_means_and_layers():
    rows = [
        {"iteration": 0, "total_loss": 2.0},
        {"iteration": 19, "tr/target": 0.02, "tr/running": 0.01, "tr/talr": 0.1, "tr/other": 9},
        # Layers may be logged at another iteration than the means.
        {"iteration": 20, "tr_layers/backbone.res2.0.conv1/running": 0.03},
        {
            "iteration": 39,
            "tr/target": 0.01,
            "tr/running": 0.015,
            "tr_layers/backbone.res2.0.conv1/running": 0.02,
            "tr_layers/backbone.res2.0.conv1/talr": 0.4,
            "tr_layers/head.cls.0/running": 0.5,
            "tr_layers/head.cls.0/what": 0.5,
        },
    ]
    series = tr_series(rows)
    assert set(series) == {"iteration", "target", "running", "talr", "layers"}
    assert series["iteration"] == [19, 39]
    assert series["target"] == [0.02, 0.01]
    assert series["running"] == [0.01, 0.015]
    np.testing.assert_equal(series["talr"], [0.1, math.nan])
    assert list(series["layers"]) == ["backbone.res2.0.conv1", "head.cls.0"]
    conv = series["layers"]["backbone.res2.0.conv1"]
    assert conv["iteration"] == [20, 39]
    assert conv["running"] == [0.03, 0.02]
    np.testing.assert_equal(conv["talr"], [math.nan, 0.4])
    assert series["layers"]["head.cls.0"] == {"iteration": [39], "running": [0.5], "talr": []}


def test_series_of_plain_sgd_and_of_nothing():
    rows = [{"iteration": i, "tr/running": 0.1} for i in (19, 39)]
    series = tr_series(rows)
    assert series["target"] == []
    assert series["talr"] == []
    assert series["running"] == [0.1, 0.1]
    nothing = {"iteration": [], "target": [], "running": [], "talr": [], "layers": {}}
    assert tr_series([{"iteration": 3, "lr": 0.1}]) == nothing


# ------------------------------------------------------------------------------------ results_table


def test_table_values():
    table = results_table(complete_results())
    header = next(line for line in table.splitlines() if line.startswith("model"))
    names = ["model", "AP", "AP50", "AP75", "APs", "APm", "APl", "weight", "MB"]
    assert header.split() == names
    assert cells(table, "FP") == ["57.8", "77.8", "58.8", "27.8", "59.8", "61.8", "44.80"]
    assert cells(table, "W4A3 before QAT")[0] == "31.2"
    assert cells(table, "W4A3 before QAT")[-1] == "5.60"
    assert cells(table, "W4A3 after QAT (SGDT)")[:2] == ["56.9", "76.9"]
    assert note(table, "AP against FP") == "-26.6 before QAT, -0.9 after QAT"
    assert "8.0 times smaller" in note(table, "weights")


def test_table_is_aligned_and_narrow():
    results = complete_results()
    results["before_qat"] = metrics(1.0) | {"APs": math.nan}
    results["after_qat"]["AP"] = 100.0
    results["optimizer"] = "AnOptimizer" * 9
    results["seconds"] = {f"phase_{i}": i * 1000.0 for i in range(40)}
    table = results_table(results)
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    assert table.isascii()
    assert not any(line != line.rstrip() for line in lines)
    rules = [i for i, line in enumerate(lines) if set(line) == {"-"}]
    assert len(rules) == 3
    grid = lines[rules[0] : rules[2] + 1]
    assert len({len(line) for line in grid}) == 1
    # Each column's values end where its heading ends.
    header = grid[1]
    for name in ("AP50", "AP75", "APs", "APm", "APl", "weight MB"):
        end = header.index(name) + len(name)
        for row in grid[3:6]:
            assert row[end - 1] != " ", (name, row)
            assert row[end : end + 1] in ("", " "), (name, row)


def test_table_shows_what_is_missing():
    results = complete_results()
    results["fp"] = metrics(50.0) | {"APs": math.nan, "APl": None}
    results["after_qat"] = None
    results["storage_mb"] = {"fp": 12.5}
    del results["fp"]["APm"]
    table = results_table(results)
    assert cells(table, "FP") == ["50.0", "70.0", "51.0", "-", "-", "-", "12.50"]
    assert cells(table, "W4A3 after QAT") == ["-"] * 7
    assert note(table, "AP against FP") == "-18.8 before QAT, - after QAT"
    assert note(table, "weights") == "-"
    assert "nan" not in table.lower()
    assert "none" not in table.lower()


def test_table_of_nothing():
    table = results_table({})
    assert cells(table, "FP") == ["-"] * 7
    assert note(table, "seconds") == "-"
    assert "plain SGD: no target" in table


def test_transition_rates():
    results = complete_results()
    text = note(results_table(results), "transition rate")
    assert text == "target 0%, running 0.0400% at the end, 2.0% of the initial target 2.00%"

    results["tr"]["initial_target"] = 0.04
    assert "1.0% of the initial target 4.00%" in results_table(results)

    # The last value that was logged counts, also after a round trip through strict JSON.
    results["tr"] = {"target": [0.1, 0.05, None], "running": [0.2, 0.03, math.nan]}
    text = note(results_table(results), "transition rate")
    assert text == "target 5.00%, running 3.00% at the end, 30.0% of the initial target 10.0%"


@pytest.mark.parametrize("target", [None, [], [None, None], [math.nan]])
def test_no_target(target):
    results = complete_results()
    results["tr"]["target"] = target
    results["optimizer"] = "SGD"
    text = note(results_table(results), "transition rate")
    assert text == "plain SGD: no target, running 0.0400% at the end"
    results["optimizer"] = "SGDT"
    assert "no target was logged" in results_table(results)
    assert "plain" not in results_table(results)


def test_seconds_in_the_order_of_the_phases():
    text = note(results_table(complete_results()), "seconds")
    assert text == "dataset 4.2, FP eval 20.1, QAT 310, sleeping 1.0, total 457"


def test_table_of_results_read_back_from_json_is_the_same(tmp_path):
    results = complete_results()
    results["fp"]["APs"] = math.nan
    write_json(tmp_path / "results.json", results)
    read = json.loads((tmp_path / "results.json").read_text())
    assert results_table(read) == results_table(results)
