"""The hooks that write metrics.json and checkpoints, in an order in which nothing can be lost.

What an iteration put into the EventStorage is written before its checkpoint, and its evaluation
comes after that. So a checkpoint stands for all records up to its iteration but the evaluation's,
and a resumed run drops later records and makes the evaluation if it is not there.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter

from tr_det.runtime.metrics import MetricsFile
from tr_det.runtime.processes import from_first
from tr_det.runtime.run_folder import FINAL

WINDOW = 20
"""Iterations whose median is recorded of what is noisy, as by Detectron2's writers."""


class Printer(CommonMetricPrinter):  # type: ignore[misc]
    """Detectron2's printer, which on v0.6 cannot print twice in one of the first iterations.

    It does where such an iteration fails, and its own error would hide that one.
    """

    def _get_eta(self, storage: Any) -> str | None:
        with suppress(ZeroDivisionError):
            eta: str | None = super()._get_eta(storage)
            return eta
        return None


def own_writers(writers: list[EventWriter]) -> list[EventWriter]:
    """Return the writers but for Detectron2's own of metrics.json, which `Records` writes."""
    own = []
    for writer in writers:
        if type(writer) is JSONWriter:
            writer.close()
        elif type(writer) is CommonMetricPrinter:
            own.append(Printer(writer._max_iter, writer._window_size))
        else:
            own.append(writer)
    return own


class LearningRate(hooks.LRScheduler):  # type: ignore[misc]
    """Steps the schedule, and records the learning rate of what is not quantized.

    Detectron2's hook records that of the largest group. Often that is the quantizers', whose rate
    is a tenth of it.
    """

    def before_train(self) -> None:
        """Take the first group, which is an ordinary one."""
        super().before_train()
        self._best_param_group_id = 0


class Records(HookBase):
    """Appends what is new in the EventStorage to metrics.json, as Detectron2's JSONWriter does.

    Must come before the checkpointer.

    Args:
        folder: of the run.
        periods: iterations between two records; a common multiple is one record.
    """

    def __init__(self, folder: str, periods: list[int]) -> None:
        self.folder, self.periods = folder, periods
        self._written: dict[str, int] = {}

    def before_train(self) -> None:
        """Drop what a stopped run wrote after its checkpoint."""
        self._file = MetricsFile(self.folder, self.trainer.start_iter)

    def after_step(self) -> None:
        """Write, if a record is due."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(done % period == 0 for period in self.periods):
            self.write()

    def write(self) -> None:
        """Write what is new, one line for each iteration."""
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        latest = self.trainer.storage.latest_with_smoothing_hint(WINDOW)
        for key, (value, iteration) in latest.items():
            # The time left is put by the printer, after the record.
            if iteration > self._written.get(key, -1) and key != "eta_seconds":
                self._written[key] = iteration
                rows[iteration][key] = value
        for iteration in sorted(rows):
            self._file.write(iteration, rows[iteration])

    def has_evaluation(self) -> bool:
        """Return whether the stopped run has recorded an evaluation of its checkpoint."""
        # Records of training were written before, and have the loss.
        return any("total_loss" not in record for record in self._file.before)


class Checkpoints(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which also ends what was stopped before its final checkpoint."""

    def before_train(self) -> None:
        """Make the final checkpoint if only that is left to do."""
        super().before_train()
        if self.trainer.start_iter == self.trainer.max_iter:
            self.checkpointer.save_resumed_as(FINAL)


class Evaluation(hooks.EvalHook):
    """Detectron2's hook, which records what it finds at once.

    Args:
        hook: Detectron2's.
        records: None in processes that write nothing.
    """

    def __init__(self, hook: hooks.EvalHook, records: Records | None) -> None:
        super().__init__(hook._period, hook._func)
        self._records = records

    def before_train(self) -> None:
        """Evaluate a checkpoint whose evaluation was due when the run was stopped."""
        done = self.trainer.start_iter
        due = self._period > 0 and 0 < done < self.trainer.max_iter and done % self._period == 0
        if due and not from_first(self._records is not None and self._records.has_evaluation()):
            self.trainer.storage.iter = done - 1
            self._do_eval()

    def _do_eval(self) -> None:
        super()._do_eval()
        if self._records is not None:
            self._records.write()
