"""The hook that ends a detector's training on a signal."""

from __future__ import annotations

from detectron2.engine import HookBase

from tr_det.runtime.signals import end_if_asked


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
