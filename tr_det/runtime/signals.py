"""SIGINT and SIGTERM: a run ends after the step in which one comes, anything else at once.

Nothing happens in a program that has not entered `ended_by_signals`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ECHO = 1.0
"""Seconds in which another signal is the same wish: a terminal, `timeout` or a cluster sends it to
the launcher and to the processes that the launcher sends it to."""


class Stopped(SystemExit):
    """A signal ends this process, with the status that shells use.

    Attributes:
        signal: that came.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


@dataclass
class _State:
    active: bool = False
    received: int = 0  # the first signal's number
    at: float = 0.0
    holding: bool = False
    children: tuple[int, ...] = ()
    answer: Callable[[], int] = int  # what all processes had received a step ago; int() is 0


_state = _State()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Stopped` where a signal comes, or as `held` says; a second one kills."""
    if threading.current_thread() is not threading.main_thread():
        yield  # others get no signals
        return
    global _state
    outer, _state = _state, _State(active=True)
    # A shell starts what runs in the background with Ctrl-C ignored.
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, _receive) for number in heard}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _state = outer


@contextmanager
def held() -> Iterator[None]:
    """Let signals wait for `end_if_asked`, for `at_once`, or for the end of the block."""
    _state.holding = True
    try:
        yield
    finally:
        _state.holding = False
    _end()


@contextmanager
def at_once() -> Iterator[None]:
    """Let signals within `held` raise where they come, as it takes long and can be repeated."""
    holding, _state.holding = _state.holding, False
    try:
        _end()
        yield
    finally:
        _state.holding = holding


def end_if_asked(save: Callable[[], None]) -> None:
    """End the run if any of its processes has a signal: to be called in all, after a step.

    Several processes end a step later, as none waits in a step for what the others have.

    Args:
        save: writes what the run can go on from.
    """
    # torch's, which not every program has
    from tr_det.runtime.processes import asked_for_largest, processes, wait_for_all

    if not _state.active:
        return
    number = _state.received
    if processes() > 1:
        number = _state.answer()
        _state.answer = asked_for_largest(_state.received)
    if number:
        save()
        wait_for_all()  # the first one to end has the others ended
        raise Stopped(number)


@contextmanager
def waiting() -> Iterator[None]:
    """Start processes within: signals wait in them until they enter `ended_by_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def passed_on(children: list[int]) -> Iterator[None]:
    """Send signals to other processes instead of ending.

    Args:
        children: their numbers.
    """
    _state.holding, _state.children = True, tuple(children)
    try:
        yield
    finally:
        _state.holding, _state.children = False, ()


def _receive(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if not _state.received:
        _state.received, _state.at = number, now
        for child in _state.children:
            with suppress(ProcessLookupError):  # it has ended
                os.kill(child, number)
        if not _state.holding:
            raise Stopped(number)
    elif now - _state.at > _ECHO:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _end() -> None:
    if _state.received:
        raise Stopped(_state.received)
