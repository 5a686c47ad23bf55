"""How a detector's training ends before its time: on a signal, and on a mistake of the user's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.engine import HookBase

from tr_det.runtime.cli import USER_ERRORS, one_line, wants_traceback
from tr_det.runtime.signals import end_if_asked


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Have Detectron2 log one line, not a traceback, of an error that one line says all of."""
    logger = logging.getLogger("detectron2.engine.train_loop")
    logger.addFilter(_in_one_line)
    try:
        yield
    finally:
        logger.removeFilter(_in_one_line)


def _in_one_line(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, USER_ERRORS) and not wants_traceback():
        record.msg, record.args = "%s %s", (record.getMessage(), one_line(error))
        record.exc_info = None
    return True


class EndOnSignal(HookBase):
    """Ends a run after the step in which SIGINT or SIGTERM comes, with a checkpoint to resume from.

    Must come after the hooks that change model or schedule, in every process. Signals do so within
    `tr_det.runtime.signals.held`.
    """

    def after_step(self) -> None:
        """End the run if it is asked to; after the last step it goes on to its results."""
        if self.trainer.iter + 1 < self.trainer.max_iter:
            end_if_asked(self._save)

    def _save(self) -> None:
        trainer = self.trainer
        trainer.run_state.gather()
        trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
