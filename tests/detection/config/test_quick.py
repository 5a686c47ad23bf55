"""configs/quick: the instant run meets its expected results, and fails if it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tr_det.detection import QuantTrainer

ROOT = Path(__file__).resolve().parents[3]
CONFIG = "configs/quick/instant_retinanet_R18_half_w4a4_sgdt.yaml"


def test_the_instant_config_meets_its_expected_results(tmp_path):
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    command = [sys.executable, "tools/train_net.py", "--config-file", CONFIG]
    command += ["OUTPUT_DIR", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "Results verification passed" in done.stdout + done.stderr


def test_a_result_that_is_not_as_expected_stops_with_status_1(make_config):
    cfg = make_config("TEST.EXPECTED_RESULTS", [["bbox", "AP", 99.0, 0.5]])
    with pytest.raises(SystemExit, match="1"):
        QuantTrainer(cfg).train()
