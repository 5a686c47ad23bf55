"""How processes end when SIGINT or SIGTERM comes; each in a process of its own."""

import multiprocessing
import os
import signal
import time

import pytest
import torch.distributed as dist

from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.signals import at_once, end_if_asked, held

fork = multiprocessing.get_context("fork")


def in_a_process(function, *args):
    """Return the exit code of a function in a forked process."""
    process = fork.Process(target=function, args=args)
    process.start()
    process.join(30)
    return process.exitcode


def come(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_program_at_once_in_one_line(number, status, capfd):
    def program():
        signal.signal(number, signal.SIG_DFL)  # what runs in the background ignores SIGINT
        with one_line_errors():
            come(number)
            time.sleep(20)

    assert in_a_process(program) == status
    assert capfd.readouterr().err == f"stopped by {number.name}\n"


def test_a_signal_that_a_shell_has_ignored_stays_ignored():
    def program():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with one_line_errors():
            come(signal.SIGINT)

    assert in_a_process(program) == 0


def steps(left, number=signal.SIGTERM):
    """Make steps, in the second of which a signal comes; write down what is made."""
    with one_line_errors(), held():
        for step in range(4):
            if step == 1:
                come(number)
                come(number)  # from a terminal and from a launcher
            left.append(step)
            end_if_asked(lambda: left.append("saved"))


def test_a_run_ends_after_the_step_in_which_a_signal_comes():
    with multiprocessing.Manager() as manager:
        left = manager.list()
        assert in_a_process(steps, left) == 143
        assert list(left) == [0, 1, "saved"]


def test_what_can_be_repeated_ends_at_once():
    def evaluate():
        with one_line_errors(), held(), at_once():
            come(signal.SIGTERM)
            time.sleep(20)

    def come_to_evaluate():
        with one_line_errors(), held():
            come(signal.SIGTERM)
            with at_once():
                time.sleep(20)

    assert in_a_process(evaluate) == in_a_process(come_to_evaluate) == 143


def test_a_signal_after_the_last_step_ends_the_run_too():
    def run():
        with one_line_errors():
            with held():
                come(signal.SIGTERM)
            time.sleep(20)

    assert in_a_process(run) == 143


def test_a_second_signal_kills_what_does_not_end(monkeypatch):
    monkeypatch.setattr("tr_det.runtime.signals._ECHO", 0.01)

    def stuck():
        with one_line_errors(), held():
            come(signal.SIGTERM)
            time.sleep(0.05)
            come(signal.SIGTERM)
            time.sleep(20)

    assert in_a_process(stuck) == -signal.SIGTERM


def joined_steps(rank, folder, left):
    """Make steps in one of two processes; the first one takes its time to save."""

    def save(step):
        time.sleep(0.5 * (rank == 0))
        left.append(f"{rank} has saved step {step}")

    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    try:
        with one_line_errors(), held():
            for step in range(4):
                if step == rank == 1:
                    come(signal.SIGTERM)
                end_if_asked(lambda step=step: save(step))
    finally:
        left.append(f"{rank} ends")


def test_all_processes_end_after_the_same_step_and_not_before_all_have_saved(tmp_path):
    with multiprocessing.Manager() as manager:
        left = manager.list()
        context = multiprocessing.get_context("fork")
        both = [context.Process(target=joined_steps, args=(r, tmp_path, left)) for r in (0, 1)]
        for process in both:
            process.start()
        for process in both:
            process.join(30)
        assert [process.exitcode for process in both] == [143, 143]
        # A step later than one process alone.
        assert list(left)[:2] == ["1 has saved step 2", "0 has saved step 2"]
        assert sorted(left[2:]) == ["0 ends", "1 ends"]
