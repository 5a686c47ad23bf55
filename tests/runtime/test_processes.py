import errno
import multiprocessing
import threading

import pytest

from tr_det.runtime.processes import only_writer


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "new"
    with only_writer(folder), pytest.raises(ValueError, match="another run writes there"):
        only_writer(folder).__enter__()
    with only_writer(folder):
        pass


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock._unix.fcntl.flock", no_locks)
    with only_writer(tmp_path):
        assert "cannot be locked" in caplog.text


def test_a_waiting_writer_starts_after_the_first(tmp_path, caplog):
    order, waiting = [], threading.Event()

    def second():
        waiting.set()
        with only_writer(tmp_path, wait=True, pause=0.01):
            order.append("second")

    with caplog.at_level("INFO"), only_writer(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert caplog.messages == [f"Waiting for {tmp_path}, which another run is training"]


def hold(folder, ready):
    with only_writer(folder):
        ready.set()
        threading.Event().wait()


def test_a_killed_writer_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    process.kill()
    process.join()
    with only_writer(tmp_path):
        pass
