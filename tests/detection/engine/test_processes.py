import argparse

import pytest
import torch

from tr_det.detection.engine.processes import run_processes


def arguments(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto"):
    return argparse.Namespace(
        num_gpus=num_gpus, num_machines=num_machines, machine_rank=machine_rank, dist_url=dist_url
    )


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_one_process_is_this_one(num_gpus):
    called = []
    run_processes(called.append, arguments(num_gpus))
    assert called == [arguments(num_gpus)]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_gpus": -1}, "--num-gpus=-1: must be at least 0"),
        ({"num_gpus": 0, "num_machines": 2}, "--num-gpus=0: must be at least 1"),
        ({"num_machines": 0}, "--num-machines=0: must be at least 1"),
        ({"num_machines": 2, "machine_rank": 5}, "--machine-rank=5: must be from 0 to one less"),
        ({"num_machines": 2}, "--dist-url='auto': must be tcp://HOST:PORT of the first machine"),
    ],
)
def test_numbers_that_would_wait_for_ever_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        run_processes(print, arguments(**numbers))


def test_torchrun_and_own_processes_contradict(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ValueError, match="--num-gpus=2: must be left out where torchrun"):
        run_processes(print, arguments(2))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--num-gpus=2: must be at most 1, the visible GPUs"):
        run_processes(print, arguments(2))
