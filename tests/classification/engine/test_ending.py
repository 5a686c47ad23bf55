"""A run that SIGTERM ends goes on as if it had not been stopped."""

import os
import signal
from pathlib import Path

import pytest

from tr_det.classification.config.reading import load_config
from tr_det.classification.engine.run import run
from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.runtime.metrics import read_records
from tr_det.runtime.signals import Stopped, ended_by_signals

TIMES = {"eta_seconds"}


def records(folder):
    rows = read_records(Path(folder) / "metrics.json")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.parametrize("method", ["_step", "evaluate"])
def test_a_run_that_a_signal_ends_is_resumed_bit_for_bit(folder, monkeypatch, final, same, method):
    keys = ["run.eval_period", "3", "run.checkpoint_period", "0"]
    run(load_config("fp.yaml", [*keys, "run.output_dir", "whole"]))
    config = load_config("fp.yaml", [*keys, "run.output_dir", "stopped"])
    plain = getattr(ClassifierTrainer, method)

    def signalled(trainer, *args):
        if trainer.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(trainer, *args)

    with monkeypatch.context() as patch, ended_by_signals():
        patch.setattr(ClassifierTrainer, method, signalled)
        with pytest.raises(Stopped):
            run(config)
    # An evaluation ends at once; the run then goes on from its last checkpoint.
    saved = {"_step": ["model_0000004.pth"], "evaluate": []}[method]
    assert [path.name for path in Path("stopped").glob("model_*.pth")] == saved
    run(config, resume=True)
    for part in ("model", "optimizer", "scheduler"):
        assert same(final("whole")[part], final("stopped")[part]), part
    assert records("stopped") == records("whole")


def test_a_restarted_run_goes_on_without_being_asked_to(folder, monkeypatch, final, same, stop_at):
    config = load_config("fp.yaml", ["run.output_dir", "whole"])
    run(config)
    stop_at(config, "model_0000004.pth", "stopped")
    before = Path("stopped/model_0000004.pth").stat().st_mtime_ns
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run(load_config("fp.yaml", ["run.output_dir", "stopped"]))
    assert Path("stopped/model_0000004.pth").stat().st_mtime_ns == before
    assert same(final("whole")["model"], final("stopped")["model"])
