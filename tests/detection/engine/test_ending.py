"""A detector's training that SIGTERM ends goes on as if it had not been stopped."""

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.detection.engine.test_resume import assert_same_checkpoint
from tr_det.detection import QuantTrainer
from tr_det.runtime.metrics import read_records
from tr_det.runtime.signals import Stopped, ended_by_signals, held

TIMES = {"time", "data_time", "rank_data_time"}


def train(cfg):
    torch.manual_seed(0)  # of the weights that a run begins with
    trainer = QuantTrainer(cfg)
    trainer.resume_or_load(resume=True)
    with held():
        trainer.train()


def records(folder):
    rows = read_records(Path(folder) / "metrics.json")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_a_run_that_a_signal_ends_is_resumed_bit_for_bit(tiny, scenes, tmp_path, monkeypatch):
    # An untrained detector scores around 0.01.
    keys = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "TEST.EVAL_PERIOD", 2]
    keys += ["SOLVER.CHECKPOINT_PERIOD", 100]
    train(tiny.tiny_config(tmp_path / "whole", *keys))
    cfg, plain = tiny.tiny_config(tmp_path / "stopped", *keys), QuantTrainer.run_step

    def signalled(trainer):
        if trainer.iter == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(trainer)

    with monkeypatch.context() as patch, ended_by_signals():
        patch.setattr(QuantTrainer, "run_step", signalled)
        patch.setattr(QuantTrainer, "test", lambda *_: pytest.fail("evaluated"))
        with pytest.raises(Stopped):
            train(cfg)
    assert (tmp_path / "stopped/model_0000001.pth").is_file()
    train(cfg)
    assert_same_checkpoint(*(tmp_path / name / "model_final.pth" for name in ("whole", "stopped")))
    assert records(tmp_path / "stopped") == records(tmp_path / "whole")
