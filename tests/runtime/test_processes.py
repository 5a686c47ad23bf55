import errno
import multiprocessing
import os
import signal
import threading
import time

import pytest

from tr_det.runtime.processes import begin_worker, end_with_parent, only_writer

fork = multiprocessing.get_context("fork")


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "new"
    refused = pytest.raises(ValueError, match=r"^OUT='.*new': another run writes there")
    with only_writer(folder, "OUT"), refused:
        only_writer(folder, "OUT").__enter__()
    with only_writer(folder, "OUT"):
        pass


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock._unix.fcntl.flock", no_locks)
    with only_writer(tmp_path, "OUT"):
        assert "cannot be locked" in caplog.text


def test_a_waiting_writer_starts_after_the_first(tmp_path, caplog):
    order, waiting = [], threading.Event()

    def second():
        waiting.set()
        with only_writer(tmp_path, "OUT", wait=True, pause=0.01):
            order.append("second")

    with caplog.at_level("INFO"), only_writer(tmp_path, "OUT"):
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait()
        thread.join(1)  # longer than a writer tries before it says that it waits
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert caplog.messages == [f"Waiting for {tmp_path}, which another run is training"]


def hold(folder, sender):
    with only_writer(folder, "OUT"):
        worker = fork.Process(target=threading.Event().wait)
        worker.start()
        sender.send(worker.pid)
        worker.join()


def test_a_killed_writer_leaves_no_lock_to_its_loader_s_workers(tmp_path):
    receiver, sender = fork.Pipe()
    process = fork.Process(target=hold, args=(tmp_path, sender))
    process.start()
    worker = receiver.recv()
    process.kill()
    process.join()
    with only_writer(tmp_path, "OUT"):
        os.kill(worker, signal.SIGKILL)


def parent(watch, sender):
    def child():
        watch()
        sender.send(os.getpid())
        time.sleep(60)

    process = fork.Process(target=child)
    process.start()
    process.join()


def watch_as_torchrun_s():
    multiprocessing.process._parent_process = None  # started by another program
    end_with_parent()


@pytest.mark.parametrize("watch", [end_with_parent, lambda: begin_worker(0), watch_as_torchrun_s])
def test_a_child_ends_with_its_parent(watch):
    receiver, sender = fork.Pipe()
    process = fork.Process(target=parent, args=(watch, sender))
    process.start()
    child = receiver.recv()
    process.kill()
    process.join()
    deadline = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_group_s_signal_leaves_the_loaders_workers_to_their_reader():
    def worker(sender):
        begin_worker(0)
        sender.send(os.getpgrp())

    receiver, sender = fork.Pipe()
    process = fork.Process(target=worker, args=(sender,))
    process.start()
    assert receiver.recv() != os.getpgrp()
    process.join()
