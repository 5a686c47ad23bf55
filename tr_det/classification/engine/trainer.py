"""The training loop and the evaluation: updates, schedule, metrics, accuracy, checkpoints.

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

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.config.reading import to_yaml
from tr_det.classification.data.images import Data
from tr_det.classification.data.loader import (
    check_batch_size,
    train_batches,
)
from tr_det.classification.engine.evaluation import autocast, check_classes, evaluate_model
from tr_det.classification.engine.losses import CrossEntropy
from tr_det.classification.engine.solver import build_optimizer
from tr_det.core import Attached, ConfigError, attach
from tr_det.core.errors import check
from tr_det.core.methods.telemetry import Telemetry
from tr_det.core.transition.schedule import TargetSchedule
from tr_det.runtime.bfloat16 import refuse_unset_gradients
from tr_det.runtime.checkpoints import StrictCheckpointer, save_weights
from tr_det.runtime.metrics import MetricsWriter
from tr_det.runtime.options import methods_from, under_methods_key
from tr_det.runtime.processes import from_first, processes, rank, summed
from tr_det.runtime.rng import seed_step
from tr_det.runtime.run_folder import AVERAGED, FINAL
from tr_det.runtime.signals import at_once, end_if_asked

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
        total: updates of the whole run; epochs are whole batches.

    Raises:
        ConfigError: a value that does not fit the data, the device or the model.
    """

    def __init__(
        self, config: ClassifierConfig, model: nn.Module, data: Data, loss: nn.Module | None = None
    ) -> None:
        self.config, self.model, self.data = config, model, data
        solver = config.solver
        self.loss = loss or CrossEntropy(solver.label_smoothing)
        self.device = next(model.parameters()).device
        self.images = len(data.train)  # type: ignore[arg-type]
        check_batch_size(solver.batch_size, self.images, processes())
        self.total = solver.iterations or self.images // solver.batch_size * solver.epochs
        is_float16 = config.run.precision == "float16"
        allowed = "'float32' or 'bfloat16' on a CPU, as losses are scaled on a GPU only"
        fits = not is_float16 or self.device.type != "cpu"
        check("run.precision", config.run.precision, fits, allowed)
        allowed = f"below the run's {self.total} updates"
        check("solver.warmup", solver.warmup, solver.warmup < self.total, allowed)
        self.iteration = 0
        self.optimizer = build_optimizer(config, model, self.total)
        self.attached = self._attach()
        factor = TargetSchedule(solver.schedule, self.total, solver.warmup)
        # A function, because LambdaLR would put the state of a callable object into checkpoints.
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda t: factor(t))
        # Scales losses for float16 only; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=is_float16)
        if config.run.precision == "bfloat16" and self.device.type == "cpu":
            refuse_unset_gradients(model, "run.precision", config.run.precision)
        self.checkpointer = StrictCheckpointer(
            model,
            config.run.output_dir,
            keep=config.run.keep_checkpoints,
            save_to_disk=rank() == 0,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
        )
        self.wrapped = model
        if processes() > 1:
            # Buffers are broadcast: batch norms then have the first process' statistics everywhere,
            # which are those that its checkpoints keep.
            devices = [self.device] if self.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(model, device_ids=devices)

    def _attach(self) -> Attached:
        """Attach ``solver.methods``, gradient clipping and the curves to the optimizer."""
        solver = self.config.solver
        self._logged = False
        self._curves: dict[str, float] = {}
        # Asked by the trainer's own count: a step that a scaler leaves out is no update.
        telemetry = Telemetry(lambda _: self._logged, lambda _, curves: self._curves.update(curves))
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
            yield partial(self._forward, images.to(self.device))

    def _forward(self, images: Tensor) -> Tensor:
        with autocast(self.config, self.device):
            logits: Tensor = self.model(images)
        return logits

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

    def resume(self, path: str) -> None:
        """Go on from a checkpoint of this config.

        Raises:
            ValueError: it was written by a run on other data, or lacks a run's state.
        """
        stored = self.checkpointer.load(path)
        for key, own in self._circumstances().items():
            saved = stored.get(key, own)  # older checkpoints lack them
            if key == "processes" and saved != own:
                _log.warning(
                    "The run began with %d processes and goes on with %d: random states and batch "
                    "norms differ, so its numbers are not those of an uninterrupted run",
                    saved,
                    own,
                )
            elif key == "classes":
                check_classes(self.config, saved, own, path)
            elif saved != own:
                raise ValueError(
                    f"data.root={self.config.data.root!r}: gives {own} {key}, {path} is of a run "
                    f"with {saved}; must be the same data to go on"
                )
        iteration = stored.get("iteration")
        if not (isinstance(iteration, int) and 0 <= iteration <= self.total):
            allowed = f"must be from 0 to {self.total}, the run's updates"
            raise ValueError(f"{path}: iteration={iteration!r}: {allowed}")
        self.iteration = iteration
        _log.info("Going on from iteration %d", self.iteration)

    def train(self) -> dict[str, float]:
        """Train to the end; return the last evaluation.

        The folder then has ``model_final.pth``, ``metrics.json`` and TensorBoard's events.
        """
        run, start, began = self.config.run, self.iteration, time.perf_counter()
        writer = MetricsWriter(run.output_dir, start) if rank() == 0 else None
        batches = self._batches(start)
        self.wrapped.train()
        # A run may have been stopped between a checkpoint and its evaluation.
        evaluated = from_first(_scores(writer.before) if writer else {})
        if not evaluated and 0 < start < self.total and self._evaluates(start):
            self._record_evaluation(writer)
        while self.iteration < self.total:
            logged = (self.iteration + 1) % run.log_period == 0 or self.iteration == self.total - 1
            scalars = self._step(batches, logged)
            if writer and logged:
                pace = (time.perf_counter() - began) / (self.iteration - start)
                scalars["eta_seconds"] = pace * (self.total - self.iteration)
                writer.write(self.iteration - 1, scalars)
                self._log_line(scalars)
            if self.iteration == self.total:
                break
            # Checkpoints come before evaluations, which may fail on the test images.
            if run.checkpoint_period and self.iteration % run.checkpoint_period == 0:
                self._save_numbered()
            end_if_asked(self._save_numbered)
            if self._evaluates(self.iteration):
                self._record_evaluation(writer)
        self.save(FINAL)
        ended_before = start == self.total and bool(evaluated)
        result = evaluated if ended_before else self._record_evaluation(writer)
        if writer:
            writer.close()
        return result

    def _save_numbered(self) -> None:
        self.save(f"model_{self.iteration:07d}")

    def _evaluates(self, updates: int) -> bool:
        period = self.config.run.eval_period
        return period > 0 and updates % period == 0

    @at_once()
    def _record_evaluation(self, writer: MetricsWriter | None) -> dict[str, float]:
        result = self.evaluate()
        self._check_loss(result["loss"])
        if writer:
            writer.write(self.iteration - 1, {f"test/{key}": v for key, v in result.items()})
        _log.info(
            f"{self._place()}  test accuracy {result['accuracy']:.2f}  "
            f"top-5 {result['top5']:.2f}  loss {result['loss']:.3f}"
        )
        return result

    def evaluate(self) -> dict[str, float]:
        """Return accuracy and loss on the test images, of the model as the methods change it.

        Where they change it, the changed model is written first.
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
        config = to_yaml(self.config)
        return {"iteration": self.iteration, "config": config, **self._circumstances()}

    def _circumstances(self) -> dict[str, Any]:
        """Return what a run's numbers depend on beside its config."""
        return {
            "images": self.images,
            "classes": list(self.data.classes),
            "updates": self.total,
            "processes": processes(),
        }

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]], logged: bool) -> dict[str, float]:
        """Make one update; return its scalars if ``logged``, else {}."""
        seed_step(self.config.run.seed, self.iteration, rank())
        images, labels = (part.to(self.device, non_blocking=True) for part in next(batches))
        with autocast(self.config, self.device):
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

    def _log_line(self, scalars: dict[str, Any]) -> None:
        left = timedelta(seconds=round(scalars["eta_seconds"]))
        words = [self._place(), f"eta {left}"]
        words += [f"loss {scalars['loss']:.3f}", f"accuracy {scalars['accuracy']:.1f}"]
        for name, key in (("TR", "running"), ("target", "target"), ("TALR", "talr"), ("k", "rate")):
            if f"tr/{key}" in scalars and not (key == "rate" and "tr/running" in scalars):
                words.append(f"{name} {scalars[f'tr/{key}']:.2e}")
        _log.info("  ".join(words))

    def _place(self) -> str:
        return f"{self.iteration:>{len(str(self.total))}}/{self.total}"


def _scores(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the evaluation in the records of an iteration, {} if there is none."""
    prefix = "test/"
    found = [record for record in records if f"{prefix}accuracy" in record]
    names = ("accuracy", "top5", "loss")
    return {name: found[-1].get(f"{prefix}{name}", math.nan) for name in names} if found else {}
