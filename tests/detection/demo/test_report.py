"""The demo's table, and the TR curves of metrics.json."""

import math

import numpy as np
import pytest

from tr_det.detection.demo.report import _percent, results_table, tr_series


def metrics(ap):
    return {"AP": ap, "AP50": 77.84, "AP75": 58.84, "APs": 9.0, "APm": 59.84, "APl": 100.0}


RESULTS = {
    "fp": metrics(57.84),
    "before_qat": metrics(31.23),
    "after_qat": metrics(58.11),
    "tr": {
        "iteration": [19, 39, 59],
        "target": [0.02, 0.01, 0.0],
        "running": [0.015, 0.012, 0.0004],
        "talr": [0.01, 0.02, 0.01],
        "initial_target": 0.04,
        "layers": {},
    },
    "storage_mb": {"fp": 44.8, "quantized": 5.6},
    "seconds": {
        "qat": 310.4,
        "total": 456.78,
        "dataset": 4.25,
        "fp": 20.1,
        "before_qat": 99.96,
        "after_qat": 7.0,
    },
    "weight_bits": 4,
    "act_bits": 3,
    "optimizer": "SGDT",
}
TABLE = """\
---------------------------------------------------------------------------
model                     AP   AP50   AP75   APs    APm     APl   weight MB
---------------------------------------------------------------------------
FP                      57.8   77.8   58.8   9.0   59.8   100.0       44.80
W4A3 before QAT         31.2   77.8   58.8   9.0   59.8   100.0        5.60
W4A3 after QAT (SGDT)   58.1   77.8   58.8   9.0   59.8   100.0        5.60
---------------------------------------------------------------------------
AP against FP    -26.6 before QAT, +0.3 after QAT
weights          44.80 MB at FP, 5.60 MB quantized: 8.0 times smaller
transition rate  target 0%, running 0.0400% at the end, 1.0% of the initial target 4.00%
seconds          dataset 4.2, FP 20.1, before QAT 100.0, QAT 310, after QAT 7.0, total 457"""


def test_the_table():
    assert results_table(RESULTS) == TABLE


def test_an_export_adds_rows_and_lines():
    row = {"runtime": "onnxruntime", "format": "integer", "metrics": metrics(58.06), "ms": 2.706}
    row |= {"file_mb": 2.114, "float32_ms": 4.0, "over_float32": 0.6666}
    other = row | {"runtime": "openvino", "format": "qcdq", "file_mb": 2.2, "ms": 1.5}
    exported = {"rows": [row, other], "codes": 123456, "images": 4, "failures": []}
    seconds = RESULTS["seconds"] | {"export": 30.0}
    lines = results_table(RESULTS | {"export": exported, "seconds": seconds}).splitlines()
    plain = TABLE.splitlines()
    assert [line.split()[:-1] for line in lines[3:6]] == [line.split() for line in plain[3:6]]
    assert lines[6].split()[:4] == ["W4A3", "exported", "(ONNX", "Runtime)"]
    assert lines[6].split()[4:] == ["58.1", "77.8", "58.8", "9.0", "59.8", "100.0", "5.60", "2.11"]
    assert lines[7].split()[-1] == "2.20"
    text = "\n".join(lines)
    assert "ONNX Runtime 2.71 (integer), FP32 4.00: 0.67 of its time" in text
    assert "holds: 123,456 codes in 4 images" in text
    assert "export 30.0, total 457" in text
    exported["failures"] = ["qcdq: openvino: conv: 3 of 9 codes wrong"]
    assert "FAILS: qcdq: openvino: conv" in results_table(RESULTS | {"export": exported})


def test_without_an_initial_target_the_first_logged_one_counts():
    tr = {"target": [math.nan, 0.05, 0.1], "running": [0.1, 0.2, 0.03]}
    table = results_table(RESULTS | {"tr": tr})
    assert "target 10.0%, running 3.00% at the end, 60.0% of the initial target 5.00%" in table


def test_a_plain_optimizer_has_no_target():
    table = results_table(RESULTS | {"tr": tr_series([]), "optimizer": "SGD"})
    assert "transition rate  SGD: no target" in table


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (5e-7, "<0.0001%"), (2e-6, "0.000200%"), (0.0123456, "1.23%"), (1, "100%")],
)
def test_percentages_have_three_digits(share, text):
    assert _percent(share) == text


def test_series_of_means_and_layers():
    layer = "tr_layers/backbone.res2.0.conv1"
    records = [
        {"iteration": 0, "total_loss": 2.0, "tr/rate": 0.1},
        {"iteration": 19, "tr/running": 0.01, "tr/talr": 0.1, f"{layer}/running": 0.03}
        | {f"{layer}/talr": 0.4, f"{layer}/rate": 7},
        {"iteration": 39, "tr/target": 0.02, "tr/running": 0.015, "tr/talr": 0.2}
        | {f"{layer}/running": 0.02, f"{layer}/talr": 0.5},
    ]
    series = tr_series(records)
    np.testing.assert_equal(series.pop("target"), [math.nan, 0.02])
    assert series == {
        "iteration": [19, 39],
        "running": [0.01, 0.015],
        "talr": [0.1, 0.2],
        "layers": {
            "backbone.res2.0.conv1": {
                "iteration": [19, 39],
                "running": [0.03, 0.02],
                "talr": [0.4, 0.5],
            }
        },
    }


def test_a_plain_optimizer_has_no_series():
    nothing = {"iteration": [], "target": [], "running": [], "talr": [], "layers": {}}
    assert tr_series([{"iteration": 3, "lr": 0.1, "tr/rate": 0.1}]) == nothing
