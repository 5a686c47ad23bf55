"""The training loop: updates, schedule, metrics, evaluation, checkpoints.

Nothing but weights, optimizer and schedule is kept in checkpoints: data and random states follow
from seed and iteration (`tr_det.runtime.rng`), so that on the CPU a resumed run ends bit for bit
like one that was not stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tr_det.classification.config.file import to_yaml
from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.data.datasets import Data
from tr_det.classification.data.loader import check_batch_size, train_batches
from tr_det.classification.engine.evaluation import evaluate_model
from tr_det.classification.engine.folder import FINAL, check_same_run, last_checkpoint
from tr_det.classification.engine.losses import CrossEntropy
from tr_det.classification.engine.solver import build_optimizer, build_scheduler
from tr_det.core import Attached, ConfigError, attach
from tr_det.core.errors import check
from tr_det.core.methods.telemetry import Telemetry
from tr_det.runtime.checkpoints import AVERAGED, StrictCheckpointer, save_weights
from tr_det.runtime.metrics import MetricsWriter
from tr_det.runtime.options import methods_from, under_methods_key
from tr_det.runtime.processes import processes, rank, summed
from tr_det.runtime.rng import seed_step

_log = logging.getLogger(__name__)


class ClassifierTrainer:
    """Trains a classifier as a config says.

    Args:
        config: the run.
        model: on its device; quantized if the config wants it.
        data: images.
        loss: called with (logits, images, labels); None: cross-entropy.

    Attributes:
        iteration: updates made, or left out by float16's scaler.
        total: updates of the whole run.
    """

    def __init__(
        self, config: ClassifierConfig, model: nn.Module, data: Data, loss: nn.Module | None = None
    ) -> None:
        self.config, self.model, self.data = config, model, data
        self.loss = loss or CrossEntropy(config.solver.label_smoothing)
        self.device = next(model.parameters()).device
        self.dtype: torch.dtype = getattr(torch, config.run.precision)
        fits = self.dtype is not torch.float16 or self.device.type != "cpu"
        allowed = "'float32' or 'bfloat16' on a CPU, as losses are scaled on a GPU only"
        check("run.precision", config.run.precision, fits, allowed)
        self.images = len(data.train)  # type: ignore[arg-type]
        check_batch_size(config.solver.batch_size, self.images, processes())
        self.total = total_updates(config, self.images)
        self.iteration = 0
        self.optimizer = build_optimizer(config, model, self.total)
        self.attached = self._attach()
        self.scheduler = build_scheduler(config, self.optimizer, self.total)
        # Scales losses for float16 only; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.checkpointer = StrictCheckpointer(
            model,
            config.run.output_dir,
            save_to_disk=rank() == 0,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
        )
        self.wrapped = _distributed(model, self.device)

    def _attach(self) -> Attached:
        """Attach ``solver.methods``, gradient clipping and the curves to the optimizer."""
        solver = self.config.solver
        self._logged = False
        self._curves: dict[str, float] = {}
        # Asked by the trainer's own count: a step that a scaler leaves out is no update.
        telemetry = Telemetry(lambda _: self._logged, self._take_curves)
        clip = partial(nn.utils.clip_grad_norm_, max_norm=solver.clip_norm)
        try:
            return attach(
                [*methods_from(solver.methods, "solver.methods"), telemetry],
                self.model,
                self.optimizer,
                self.total,
                clip=clip if solver.clip_norm else None,
                batches=self._forwards,
            )
        except ConfigError as error:
            raise under_methods_key(error, "solver.methods") from None

    def _forwards(self) -> Iterator[Callable[[], Any]]:
        """Yield the model's forwards on training batches, the same in each evaluation."""
        for images, _ in self._batches(0):
            yield partial(self._forward, self.model, images.to(self.device))

    def _batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return this process' training batches from that of an update on."""
        return train_batches(
            self.data.train,
            self.config.solver.batch_size,
            self.config.run.seed,
            start,
            self.config.data.workers,
            rank(),
            processes(),
        )

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = model(images)
        return logits

    def _take_curves(self, step: int, scalars: dict[str, float]) -> None:
        self._curves = scalars

    def resume(self) -> None:
        """Go on from the last checkpoint.

        Raises:
            ValueError: it was written by a run with another config, or on other data.
        """
        path = last_checkpoint(self.config.run.output_dir)
        check_same_run(path, self.config)
        stored = self.checkpointer.load(path)
        for key, ours in self._circumstances().items():
            theirs = stored.get(key, ours)  # older checkpoints lack them
            if key == "processes" and theirs != ours:
                _log.warning(
                    "Begun by %d processes, going on with %d: random states and batch norms are "
                    "others, so the numbers are not those of a run that was not stopped",
                    theirs,
                    ours,
                )
            elif theirs != ours:
                raise ValueError(
                    f"data.root={self.config.data.root!r}: gives {ours} {key}, {path} is of a run "
                    f"with {theirs}; must be the same data to go on"
                )
        self.iteration = stored["iteration"]

    def train(self) -> dict[str, float]:
        """Train to the end; return the last evaluation.

        The folder then has ``model_final.pth``, ``metrics.json`` and TensorBoard's events.
        """
        run = self.config.run
        writer = MetricsWriter(run.output_dir, self.iteration) if rank() == 0 else None
        batches = self._batches(self.iteration)
        self.wrapped.train()
        clock = _Clock(self.iteration, self.total)
        while self.iteration < self.total:
            logged = (self.iteration + 1) % run.log_period == 0 or self.iteration == self.total - 1
            scalars = self._step(batches, logged)
            if writer and logged:
                scalars["eta_seconds"] = clock.left(self.iteration)
                writer.write(self.iteration - 1, scalars)
                _log_line(self.iteration, self.total, scalars)
            if self.iteration == self.total:
                break
            # Checkpoints come before evaluations, which may fail on the test images.
            if _due(self.iteration, run.checkpoint_period):
                self.save(f"model_{self.iteration:07d}")
                self.checkpointer.keep_newest(run.keep_checkpoints)
            if _due(self.iteration, run.eval_period):
                self._record_evaluation(writer)
        self.save(FINAL)
        result = self._record_evaluation(writer)
        if writer:
            writer.close()
        return result

    def _record_evaluation(self, writer: MetricsWriter | None) -> dict[str, float]:
        result = self.evaluate()
        self._check_loss(result["loss"])
        if writer:
            writer.write(self.iteration - 1, {f"test/{key}": v for key, v in result.items()})
        _log.info(
            f"{_place(self.iteration, self.total)}  test accuracy {result['accuracy']:.2f}  "
            f"top-5 {result['top5']:.2f}  loss {result['loss']:.3f}"
        )
        return result

    def evaluate(self) -> dict[str, float]:
        """Return accuracy and loss on the test images, of what the methods make of the model.

        Where that is another one than the checkpoints hold, it is written first.
        """
        with self.attached.evaluating():
            if self.attached.changes_evaluation and rank() == 0:
                path = f"{self.config.run.output_dir}/{AVERAGED}.pth"
                save_weights(self.model, path, **self._notes())
            return evaluate_model(self.config, self.model, self.data)

    def save(self, name: str) -> None:
        """Write a checkpoint."""
        self.checkpointer.save(name, **self._notes())

    def _notes(self) -> dict[str, Any]:
        """Return what checkpoints hold beside states."""
        notes = {"iteration": self.iteration, "config": to_yaml(self.config)}
        return {**notes, **self._circumstances()}

    def _circumstances(self) -> dict[str, int]:
        """Return what a run's numbers depend on beside its config."""
        return {
            "images": self.images,
            "classes": self.data.num_classes,
            "updates": self.total,
            "processes": processes(),
        }

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]], logged: bool) -> dict[str, float]:
        """Make one update; return its scalars if they are wanted."""
        seed_step(self.config.run.seed, self.iteration, rank())
        images, labels = (part.to(self.device, non_blocking=True) for part in next(batches))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.wrapped(images)
            loss = self.loss(logits, images, labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        rate, updates = self.optimizer.param_groups[0]["lr"], self.attached.step
        self._logged, self._curves = logged, {}
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # The target TR stands still when an update is left out; so does the rate.
        if self.attached.step > updates:
            self.scheduler.step()
        self.iteration += 1
        if not logged:
            return {}
        right = (logits.argmax(1) == labels).float().mean()
        means = summed(torch.stack([loss.detach().float(), right])) / processes()
        values = means.tolist()
        self._check_loss(values[0])
        return {"loss": values[0], "accuracy": 100 * values[1], "lr": rate, **self._curves}

    def _check_loss(self, loss: float) -> None:
        skips = self.config.solver.scheduled and self.config.tr.nonfinite == "skip"
        if not (math.isfinite(loss) or skips):
            raise FloatingPointError(
                f"the loss is {loss} at update {self.iteration} of {self.total}: the run diverged; "
                f"a smaller solver.lr than {self.config.solver.lr:g}, solver.warmup or "
                "solver.clip_norm may help"
            )


def total_updates(config: ClassifierConfig, images: int) -> int:
    """Return the run's length in updates; epochs are whole batches."""
    solver = config.solver
    return solver.iterations or images // solver.batch_size * solver.epochs


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    if processes() == 1:
        return model
    # Buffers are broadcast: batch norms then have the first process' statistics everywhere, which
    # are those that its checkpoints keep.
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def _due(iteration: int, period: int) -> bool:
    return bool(period) and iteration % period == 0


class _Clock:
    """How long the rest of a run will take, at this process' pace."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total, self.began = start, total, time.perf_counter()

    def left(self, iteration: int) -> float:
        pace = (time.perf_counter() - self.began) / (iteration - self.start)
        return pace * (self.total - iteration)


def _log_line(iteration: int, total: int, scalars: dict[str, Any]) -> None:
    left = timedelta(seconds=round(scalars["eta_seconds"]))
    words = [_place(iteration, total), f"eta {left}"]
    words += [f"loss {scalars['loss']:.3f}", f"accuracy {scalars['accuracy']:.1f}"]
    for name, key in (("TR", "running"), ("target", "target"), ("TALR", "talr"), ("k", "rate")):
        if f"tr/{key}" in scalars and not (key == "rate" and "tr/running" in scalars):
            words.append(f"{name} {scalars[f'tr/{key}']:.2e}")
    _log.info("  ".join(words))


def _place(iteration: int, total: int) -> str:
    return f"{iteration:>{len(str(total))}}/{total}"
