"""The demo's progress lines; everything else goes to the log file."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.utils.events import EventWriter, get_event_storage
from detectron2.utils.logger import setup_logger


class ProgressLine(EventWriter):
    """Prints iteration, loss, TR and the time left, about 20 times in a run."""

    def __init__(self, max_iter: int, say: Callable[[str], None]) -> None:
        self.max_iter, self.say = max_iter, say
        self.every = max(1, max_iter // 20)
        self.next = 0

    def write(self) -> None:
        """Print a line when one is due."""
        storage = get_event_storage()
        iteration = storage.iter + 1
        # Writers are called once more after the last iteration.
        if iteration < min(self.next, self.max_iter) or iteration > self.max_iter:
            return
        self.next = iteration + self.every
        loss = storage.history("total_loss").median(20)
        parts = [f"      {iteration}/{self.max_iter}", f"loss {loss:.3f}"]
        for key in ("target", "running"):
            if f"tr/{key}" in storage.latest():
                parts.append(f"{key} TR {storage.latest()[f'tr/{key}'][0]:.1e}")
        with contextlib.suppress(KeyError):  # the first iterations are not timed
            left = storage.history("time").global_avg() * (self.max_iter - iteration)
            parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
        self.say("  ".join(parts))


def log_to_file(folder: Path) -> None:
    """Write Detectron2's and the project's log to ``log.txt`` only."""
    for name in ("detectron2", "fvcore", "tr_det"):
        logger = setup_logger(str(folder), name=name)
        for handler in list(logger.handlers):
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)


@contextlib.contextmanager
def prints_to_log() -> Iterator[None]:
    """Write what pycocotools prints to the log."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        logging.getLogger("tr_det").info("%s", printed.getvalue())


@contextlib.contextmanager
def inference_progress(say: Callable[[str], None]) -> Iterator[None]:
    """Show Detectron2's own progress lines (images done, time left)."""
    out = sys.stdout  # before anything redirects it

    class Show(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text.startswith("Inference done"):
                with contextlib.redirect_stdout(out):
                    done, left = text.split(".")[0].split()[-1], text.rsplit("=", 1)[-1]
                    say(f"      {done} images  {left} left")

    handler = Show()
    logger = logging.getLogger("detectron2.evaluation.evaluator")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
