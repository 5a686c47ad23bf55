"""The state of a run besides weights and optimizer, for exact resuming."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from tr_det.core.optim.keys import QUANTIZER, TALR
from tr_det.detection.data.loader import TrainLoader
from tr_det.detection.engine.calibration import NORMALIZER, bare_model
from tr_det.detection.engine.records import WINDOW
from tr_det.runtime.metrics import METRICS
from tr_det.runtime.results import RESULTS
from tr_det.runtime.rng import seed_step
from tr_det.runtime.run_folder import last_checkpoint, set_aside

_OPTIONS = ("initial_lr", "weight_decay", "momentum", "nesterov", "betas", "alpha", "eps")
"""Options of parameter groups that are constant over a run."""
OF_A_RUN = (METRICS, RESULTS, "config.yaml", "log.txt*", "events.out.tfevents.*")
"""What a run's folder has beside its checkpoints."""


def make_way(cfg: CfgNode, resume: bool) -> None:
    """Move what an earlier run has left in ``OUTPUT_DIR`` to a folder there, unless it goes on.

    To be called in all processes, before Detectron2's ``default_setup`` writes log and config.

    Raises:
        ValueError: the run is to start from a checkpoint that would be moved.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if not (resume and last_checkpoint(folder)):
        start = Path(cfg.MODEL.WEIGHTS)
        if start.match("model_*.pth") and start.resolve().parent == folder.resolve():
            raise ValueError(
                f"MODEL.WEIGHTS={start}: is in OUTPUT_DIR={folder}, which a new run clears; must "
                "be in another folder"
            )
        if comm.is_main_process():
            set_aside(folder, *OF_A_RUN, otherwise="" if resume else METRICS)
    comm.synchronize()


class RunState(HookBase):
    """Keeps seed, loss normalizers and recent scalars in checkpoints, and winds the data forward.

    The place in the data follows from the iteration (`tr_det.detection.data.loader`), random states
    from the seed and the iteration (`tr_det.runtime.rng`). Loss normalizers differ between
    processes while only the first one saves, so they are gathered where a checkpoint is due; a
    checkpoint written at another iteration holds the first process' normalizer for all.

    Must be at the same place among the hooks of every process, before the checkpointer.

    Args:
        seed: of the run; a resumed run takes the checkpoint's.
        batch_size: images per iteration of all processes.
        period: iterations between checkpoints.
        loaders: training loaders that follow the seed; the first one is wound forward.
    """

    def __init__(self, seed: int, batch_size: int, period: int, loaders: list[Any]) -> None:
        self.seed, self.batch_size, self.period = seed, batch_size, period
        self.loaders = [loader for loader in loaders if isinstance(loader, TrainLoader)]
        self._use_seed(seed)
        self._gathered: tuple[int, list[float | None]] = (-1, [])
        self._scalars: dict[str, list[list[float]]] = {}

    def before_train(self) -> None:
        """Let data and medians of scalars go on where they were at this run's first iteration."""
        for loader in self.loaders[:1]:
            loader.start = self.trainer.start_iter
        histories = self.trainer.storage.histories()
        for key, recent in self._scalars.items():
            for value, iteration in recent:
                histories[key].update(value, iteration)

    def begin_step(self) -> None:
        """Set the random states of the step that follows; to be called just before it."""
        seed_step(self.seed, self.trainer.iter, comm.get_rank())

    def after_step(self) -> None:
        """Gather the normalizers, if a checkpoint is due."""
        done = self.trainer.iter + 1
        if done % self.period == 0 or done >= self.trainer.max_iter:
            self.gather()

    def gather(self) -> None:
        """Gather the normalizers of this iteration; to be called in all processes."""
        if comm.get_world_size() > 1:
            self._gathered = (self.trainer.iter, comm.all_gather(self._normalizer()))

    def state_dict(self) -> dict[str, Any]:
        """Return what `RunState` keeps, and what the data's order depends on."""
        iteration, gathered = self._gathered
        if iteration != self.trainer.iter:
            gathered = [self._normalizer()]
        return {
            "seed": self.seed,
            "loss_normalizers": gathered,
            "processes": comm.get_world_size(),
            "batch_size": self.batch_size,
            "scalars": self._recent_scalars(),
        }

    def _recent_scalars(self) -> dict[str, list[list[float]]]:
        """Return the values that later medians have a part in, with their iterations."""
        storage = getattr(self.trainer, "storage", None)
        if storage is None:
            return {}
        smoothed = storage.smoothing_hints()
        return {
            key: [list(point) for point in history.values()[-WINDOW:]]
            for key, history in storage.histories().items()
            if smoothed.get(key) and not key.endswith("time")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the run that wrote the state."""
        self._scalars = state.get("scalars", {})  # older checkpoints lack them
        if state["seed"] != self.seed:
            self._use_seed(state["seed"])
            logging.getLogger(__name__).info("Going on with the stopped run's seed %d", self.seed)
        stopped = state["processes"], state["batch_size"]
        if stopped != (comm.get_world_size(), self.batch_size):
            logging.getLogger(__name__).warning(
                "The stopped run had %d processes and %d images per iteration; with other numbers "
                "the order of the data is not continued exactly",
                *stopped,
            )
        normalizers = state["loss_normalizers"]
        own = normalizers[comm.get_rank()] if len(normalizers) > comm.get_rank() else normalizers[0]
        if own is not None:
            setattr(bare_model(self.trainer.model), NORMALIZER, own)

    def _use_seed(self, seed: int) -> None:
        self.seed = seed
        for loader in self.loaders:
            loader.seed = seed

    def _normalizer(self) -> float | None:
        value = getattr(bare_model(self.trainer.model), NORMALIZER, None)
        return None if value is None else float(value)


def check_resumed_groups(
    saved: list[dict[str, Any]], own: list[dict[str, Any]], cfg: CfgNode
) -> None:
    """Check what a resumed optimizer would silently take over, or fail on later.

    Args:
        saved: parameter groups in the checkpoint.
        own: those of this run's optimizer, with its scheduler made.
        cfg: this run's config.

    Raises:
        ValueError: a TR-scheduled run is to go on with a plain optimizer.
    """
    plain = not any(QUANTIZER in group for group in own)  # others name what differs themselves
    if plain and any(TALR in group for group in saved):
        raise ValueError(
            f"SOLVER.OPTIMIZER={cfg.SOLVER.OPTIMIZER!r}: the run to resume was TR-scheduled; "
            "resume with the optimizer that it was started with"
        )
    changed = dict.fromkeys(  # groups share most of them
        f"{key} {theirs[key]} instead of {ours[key]}"
        for theirs, ours in zip(saved, own, strict=False)
        for key in _OPTIONS
        if key in theirs and key in ours and theirs[key] != ours[key]
    )
    if changed:
        logging.getLogger(__name__).warning(
            "These values of SOLVER have no effect, the resumed run goes on with its own: %s",
            ", ".join(changed),
        )


@contextmanager
def repeatable_scripts(device: torch.device) -> Iterator[None]:
    """Run TorchScript functions on the CPU without its optimizing executor.

    That one watches a process' first calls and then changes to fused kernels, which round
    differently, so that the first iterations after a restart would differ. On a GPU the fused
    kernels save memory, and training is not repeatable bit for bit anyway.
    """
    if device.type != "cpu":
        yield
        return
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        yield
