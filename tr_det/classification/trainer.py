"""The training loop: updates, schedule, metrics, evaluation, checkpoints.

Nothing but weights, optimizer and schedule is kept in checkpoints: data and random states follow
from seed and iteration (`tr_det.classification.loader`, `tr_det.training.rng`), so that on the CPU
a resumed run ends bit for bit like one that was not stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tr_det.classification.config import ClassifierConfig
from tr_det.classification.datasets import Data
from tr_det.classification.evaluation import evaluate
from tr_det.classification.loader import evaluation_batches, train_batches
from tr_det.classification.losses import CrossEntropy
from tr_det.classification.resume import check_same_run, fingerprint
from tr_det.classification.solver import build_optimizer, build_scheduler
from tr_det.core import TransitionScheduled
from tr_det.training.checkpoint import StrictCheckpointer, is_quantizer_state
from tr_det.training.metrics import MetricsWriter
from tr_det.training.processes import processes, rank, summed, take_from_first
from tr_det.training.rng import seed_step
from tr_det.training.watch import WeightWatcher

FINAL = "model_final"
_log = logging.getLogger(__name__)


class ClassifierTrainer:
    """Trains a classifier as a config says.

    Args:
        config: the run.
        model: on its device; quantized if the config wants it.
        data: images.
        loss: called with (logits, images, labels); None: cross-entropy.

    Attributes:
        iteration: updates made.
        total: updates of the whole run.
    """

    def __init__(
        self, config: ClassifierConfig, model: nn.Module, data: Data, loss: nn.Module | None = None
    ) -> None:
        self.config, self.model, self.data = config, model, data
        self.loss = loss or CrossEntropy(config.solver.label_smoothing)
        self.device = next(model.parameters()).device
        self.dtype: torch.dtype = getattr(torch, config.run.precision)
        if self.dtype is torch.float16 and self.device.type == "cpu":
            raise ValueError(
                "run.precision='float16': must be 'float32' or 'bfloat16' on a CPU, as losses are "
                "scaled on a GPU only"
            )
        self.total = total_updates(config, data)
        self.iteration = 0
        self.optimizer = build_optimizer(config, model, self.total)
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
        self.watcher = WeightWatcher(model)
        self.wrapped = _distributed(model, self.device)

    def resume(self) -> bool:
        """Go on from the last checkpoint, if there is one; return whether there was.

        Raises:
            ValueError: it was written by a run with another config.
        """
        if not self.checkpointer.has_checkpoint():
            return False
        path = self.checkpointer.get_checkpoint_file()
        check_same_run(path, self.config)
        self.iteration = self.checkpointer.load(path)["iteration"]
        return True

    def train(self) -> dict[str, float]:
        """Train to the end; return the last evaluation.

        The folder then has ``model_final.pth``, ``metrics.json`` and TensorBoard's events.
        """
        run, solver = self.config.run, self.config.solver
        writer = MetricsWriter(run.output_dir, self.iteration) if rank() == 0 else None
        batches = train_batches(
            self.data.train,
            solver.batch_size,
            run.seed,
            self.iteration,
            self.config.data.workers,
            rank(),
            processes(),
        )
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
            if _due(self.iteration, run.eval_period):
                self._record_evaluation(writer)
        self.save(FINAL)
        result = self._record_evaluation(writer)
        if writer:
            writer.close()
        return result

    def _record_evaluation(self, writer: MetricsWriter | None) -> dict[str, float]:
        result = self.evaluate()
        if writer:
            writer.write(self.iteration - 1, {f"test/{key}": v for key, v in result.items()})
        _log.info(
            f"{_place(self.iteration, self.total)}  test accuracy {result['accuracy']:.2f}  "
            f"top-5 {result['top5']:.2f}  loss {result['loss']:.3f}"
        )
        return result

    def evaluate(self) -> dict[str, float]:
        """Return accuracy and loss on the test images, of the model as checkpoints keep it."""
        # Since the last forward began, each process' batch norms have gone their own way.
        statistics = [b for n, b in self.model.named_buffers() if not is_quantizer_state(n)]
        take_from_first(statistics)
        share = evaluation_batches(
            self.data.test,
            self.config.solver.batch_size,
            self.config.data.workers,
            rank(),
            processes(),
        )
        return evaluate(self.model, share, self.device, self.dtype)

    def save(self, name: str) -> None:
        """Write a checkpoint."""
        self.checkpointer.save(name, iteration=self.iteration, config=fingerprint(self.config))

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]], logged: bool) -> dict[str, float]:
        """Make one update; return its scalars if they are wanted."""
        seed_step(self.config.run.seed, self.iteration, rank())
        images, labels = (part.to(self.device, non_blocking=True) for part in next(batches))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.wrapped(images)
            loss = self.loss(logits, images, labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.config.solver.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.solver.clip_norm)
        if logged:
            self.watcher.remember()
        rate = self.optimizer.param_groups[0]["lr"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.iteration += 1
        if not logged:
            return {}
        right = (logits.argmax(1) == labels).float().mean()
        means = summed(torch.stack([loss.detach().float(), right])) / processes()
        values = means.tolist()
        return {"loss": values[0], "accuracy": 100 * values[1], "lr": rate, **self._transitions()}

    def _transitions(self) -> dict[str, float]:
        """Return what the last update did to the quantized weights, means and layers."""
        sight = self.watcher.look()
        columns: dict[str, Tensor] = {
            "rate": sight.rate,
            "step_size": sight.step_size,
            "distance": sight.distance,
        }
        names = self.watcher.names
        if isinstance(self.optimizer, TransitionScheduled) and names:
            metrics = self.optimizer.transition_metrics()
            order = [metrics.names.index(f"{name}.weight") for name in names]
            for key in ("target", "running", "talr"):
                columns[key] = getattr(metrics, key).cpu()[order]
        scalars = {}
        for key, column in columns.items():
            if names:
                scalars[f"tr/{key}"] = column.mean().item()
            for name, value in zip(names, column.tolist(), strict=True):
                scalars[f"tr_layers/{name}/{key}"] = value
        return scalars


def total_updates(config: ClassifierConfig, data: Data) -> int:
    """Return the run's length in updates; epochs are whole batches."""
    if config.solver.iterations:
        return int(config.solver.iterations)
    return max(1, len(data.train) // config.solver.batch_size) * config.solver.epochs  # type: ignore[arg-type]


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    if processes() == 1:
        return model
    # Buffers are broadcast: batch norms then have the first process' statistics everywhere, which
    # are those that its checkpoints keep. Those of quantizers are equal anyway (statistics are
    # pooled when scales are set), and gloo cannot send their int16.
    own = [name for name, _ in model.named_buffers() if is_quantizer_state(name)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own)
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
