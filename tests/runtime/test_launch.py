"""Processes that are started together end together; forked here, as that is quick."""

import multiprocessing
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from torch.multiprocessing import start_processes

from tr_det.runtime import launch
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.processes import rank
from tr_det.runtime.signals import end_if_asked, held


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    monkeypatch.setattr(launch, "spawn", partial(start_processes, start_method="fork"))


def wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps(folder):
    """Make steps, and write down how many when a signal comes."""
    mine = folder / f"rank{rank()}"
    with held():
        for step in range(5000):
            mine.with_suffix(".ready").touch()
            time.sleep(0.01)
            end_if_asked(lambda step=step: mine.write_text(str(step)))


def send_when_ready(folder):
    wait_until(lambda: len(list(folder.glob("*.ready"))) == 2)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_ends_all_processes_after_the_same_step_and_in_one_line(tmp_path, capfd):
    sender = threading.Thread(target=send_when_ready, args=(tmp_path,))
    sender.start()
    with pytest.raises(SystemExit) as stop, one_line_errors():
        launch.launch(partial(steps, tmp_path), 2)
    sender.join()
    assert stop.value.code == 143
    assert capfd.readouterr().err == "stopped by SIGTERM\n"
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text()


def test_processes_whose_parent_is_killed_while_they_start_end(tmp_path, monkeypatch):
    plain = launch.end_with_parent

    def late():
        wait_until((tmp_path / "killed").exists)
        plain()

    monkeypatch.setattr(launch, "end_with_parent", late)
    monkeypatch.setattr(launch, "join", lambda *_, **__: time.sleep(60))
    fork = multiprocessing.get_context("fork")
    parent = fork.Process(target=launch.launch, args=(steps, 2))
    parent.start()
    listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    wait_until(lambda: len(listed.read_text().split()) == 2)
    children = [Path(f"/proc/{number}/fd/1") for number in listed.read_text().split()]
    parent.kill()
    parent.join()
    (tmp_path / "killed").touch()
    wait_until(lambda: not any(child.exists() for child in children))
