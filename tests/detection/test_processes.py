import argparse

import pytest
import torch

from tr_det.detection.processes import run_processes


def arguments(num_gpus):
    return argparse.Namespace(num_gpus=num_gpus, num_machines=1, machine_rank=0, dist_url="auto")


def test_one_process_is_this_one():
    called = []
    run_processes(called.append, arguments(1))
    assert called == [arguments(1)]


def test_torchrun_and_own_processes_contradict(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ValueError, match="--num-gpus=2: must be left out where torchrun"):
        run_processes(print, arguments(2))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--num-gpus=2: must be at most 1, the number of visible"):
        run_processes(print, arguments(2))
