"""One QAT run on the embedded digits, in seconds: what the studies repeat and compare."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tr_det.classification.models.resnet_cifar import ResNetCIFAR
from tr_det.core import (
    QuantConfig,
    QuantRule,
    attach,
    quantize_model,
    quantized_layers,
    tr_param_groups,
    without_transition,
)
from tr_det.core.methods.telemetry import Telemetry
from tr_det.core.optim.registry import OPTIMIZERS
from tr_det.digits.images import DigitImages, load_digit_images
from tr_det.study.course import Course, Curve
from tr_det.study.training import accuracy, train

FIRST_AND_LAST = (QuantRule(pattern="conv1", skip=True), QuantRule(pattern="fc", skip=True))

LEARNING_RATES = {"SGD": 0.1, "RMSprop": 1e-3, "Adagrad": 1e-2}
"""Base learning rates (Table S8 for SGD); 1e-3 for those not named. Adagrad's is ours."""

OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9},
}
"""Constructor arguments that differ from torch's defaults (supplement, S2.4)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run is.

    Attributes:
        optimizer: torch's name, with a T for TR scheduling.
        bits: of weights and activations.
        steps: optimizer updates.
        seed: of the full-precision model and of the batches.
        lr: base learning rate; None takes the optimizer's from `LEARNING_RATES`.
        schedule: course of the learning rate, and of the target unless ``tr`` names another.
        learn_weight_scale: None trains the scales of plain optimizers' weights, as the paper does.
        tr: arguments of `TransitionScheduled`, without ``total_steps``.
        watch: look at the weights at every update (`Outcome.trace`); takes a third longer.
    """

    optimizer: str = "SGDT"
    bits: int = 2
    steps: int = 600
    seed: int = 0
    lr: float | None = None
    schedule: str = "cosine"
    learn_weight_scale: bool | None = None
    tr: dict[str, Any] = field(default_factory=dict)
    watch: bool = False


@dataclass(frozen=True)
class Trace:
    """What was seen of a run's quantized weights, and how well it did on the way.

    Attributes:
        step_size: mean change of levels, shape (updates - 1, layers), from the second update on.
        distance: mean distance to the nearest transition point in units of codes, likewise.
        rate: learning rate of parameters that are not quantized, by update.
        accuracy: on held-out digits, by number of updates made.
        latents: normalised latent weights of the middle layer, by number of updates made.
        layer: its name.
        transition_points: its quantizer's.
    """

    step_size: Tensor
    distance: Tensor
    rate: list[float]
    accuracy: dict[int, float]
    latents: dict[int, Tensor]
    layer: str
    transition_points: Tensor


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        accuracy: on held-out digits, in percent.
        running: K of every layer and update, shape (steps, layers); empty without TR scheduling.
        target: R, likewise; NaN while the TR factor is being found.
        talr: U, likewise.
        factor: lambda; NaN without TR scheduling.
        first_target: R_0 = lambda sqrt(b) of every layer.
        trace: with ``Run.watch``.
    """

    accuracy: float
    running: Tensor
    target: Tensor
    talr: Tensor
    factor: float
    first_target: Tensor
    trace: Trace | None = None

    def tracking_error(self) -> float:
        """Return mean |K - R| / R_0 over layers and updates after the first tenth."""
        skip = len(self.running) // 10
        error = (self.running - self.target).abs()[skip:] / self.first_target
        return error.mean().item()

    def course(self) -> Course:
        """Return what the pictures show.

        Raises:
            ValueError: the run was not watched.
        """
        trace = self.trace
        if trace is None:
            raise ValueError("outcome without trace: the run must have watch=True")
        accuracy = torch.tensor(list(trace.accuracy.values()), dtype=torch.float64)
        return Course(
            running=_by_update(self.running),
            target=_by_update(self.target),
            talr=_by_update(self.talr),
            rate=_by_update(torch.tensor(trace.rate, dtype=torch.float64).unsqueeze(1)),
            step_size=_by_update(trace.step_size),
            distance=_by_update(trace.distance),
            accuracy=Curve(torch.tensor(list(trace.accuracy)), accuracy.unsqueeze(1)),
            final_accuracy=self.accuracy,
            latents=trace.latents,
            layer=trace.layer,
            transition_points=trace.transition_points,
            window=20,
            averaged="20 updates",
            images="held-out digits",
        )


def _by_update(values: Tensor) -> Curve:
    return Curve(torch.arange(len(values)), values)


class _Tracer:
    """Makes a `Trace`; looks only, so a watched run has the numbers of one that is not."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, data: DigitImages, steps: int
    ) -> None:
        self.model, self.optimizer, self.data = model, optimizer, data
        self.layers = {
            name: layer for name, layer in quantized_layers(model) if layer.weight_quantizer
        }
        self.name = list(self.layers)[len(self.layers) // 2]
        self.layer = self.layers[self.name]
        self.accuracy_period = max(1, steps // 30)
        # After a first update, which sets the scales, and after each third.
        self.pictured = {1, *(round(steps * third / 3) for third in (1, 2, 3))}
        self.curves: list[dict[str, float]] = []
        self.telemetry = Telemetry(lambda step: step > 0, self._take)
        self.rates: list[float] = []
        self.accuracy: dict[int, float] = {}
        self.latents: dict[int, Tensor] = {}

    def _take(self, step: int, scalars: dict[str, float]) -> None:
        self.curves.append(scalars)

    def see(self, step: int) -> None:
        done = step + 1
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        if done % self.accuracy_period == 0:
            self.accuracy[done] = accuracy(self.model, self.data)
        if done in self.pictured:
            quantizer = self.layer.weight_quantizer
            assert quantizer is not None
            self.latents[done] = quantizer.normalized(self.layer.weight).flatten().clone()

    def trace(self) -> Trace:
        quantizer = self.layer.weight_quantizer
        assert quantizer is not None
        return Trace(
            self._by_layer("step_size"),
            self._by_layer("distance"),
            self.rates,
            self.accuracy,
            self.latents,
            self.name,
            quantizer.transition_points(),
        )

    def _by_layer(self, key: str) -> Tensor:
        rows = ([row[f"tr_layers/{name}/{key}"] for name in self.layers] for row in self.curves)
        return torch.tensor(list(rows))


class Laboratory:
    """Runs experiments; keeps the data, and one full-precision model per seed.

    Args:
        pretraining_steps: updates of the full-precision models.
        depth: of the ResNet, 6n + 2.
        width: channels of its first stage.
    """

    def __init__(self, pretraining_steps: int = 600, depth: int = 8, width: int = 8) -> None:
        self.pretraining_steps, self.depth, self.width = pretraining_steps, depth, width
        self.data: DigitImages = load_digit_images()
        self._models: dict[int, nn.Module] = {}

    def full_precision(self, seed: int) -> nn.Module:
        """Return a copy of the full-precision model of a seed, trained on first use."""
        if seed not in self._models:
            torch.manual_seed(seed)
            model = ResNetCIFAR(self.depth, in_channels=1, width=self.width)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
            train(model, optimizer, self.data, self.pretraining_steps, seed=seed)
            self._models[seed] = model
        return copy.deepcopy(self._models[seed])

    def run(self, run: Run) -> Outcome:
        """Quantize the full-precision model, train it, and return the outcome."""
        model = self.full_precision(run.seed)
        scheduled = OPTIMIZERS[run.optimizer].transition
        config = QuantConfig(
            weight_bits=run.bits,
            act_bits=run.bits,
            learn_weight_scale=(
                not scheduled if run.learn_weight_scale is None else run.learn_weight_scale
            ),
            rules=(*FIRST_AND_LAST, QuantRule(pattern="blocks.*", output_scale=False)),
        )
        quantize_model(model, config)
        optimizer = _optimizer(model, run)
        history: list[tuple[Tensor, Tensor, Tensor]] = []

        tracer = _Tracer(model, optimizer, self.data, run.steps) if run.watch else None
        attach([tracer.telemetry] if tracer else [], model, optimizer, run.steps)

        def record(step: int, loss: Tensor) -> None:
            if scheduled:
                metrics = optimizer.transition_metrics()
                history.append((metrics.running, metrics.target, metrics.talr))
            if tracer:
                tracer.see(step)

        train(
            model,
            optimizer,
            self.data,
            run.steps,
            seed=run.seed + 1000,
            schedule=run.schedule,
            on_step=record,
        )
        columns = [torch.stack(column) for column in zip(*history, strict=True)]
        running, target, talr = columns or [torch.zeros(0)] * 3
        groups = [group for group in optimizer.param_groups if "tr_factor" in group]
        factor = groups[0]["tr_factor"] if groups else math.nan
        first_target = torch.tensor([factor * math.sqrt(group["bits"]) for group in groups])
        trace = tracer.trace() if tracer else None
        return Outcome(
            accuracy(model, self.data), running, target, talr, factor, first_target, trace
        )


def _optimizer(model: nn.Module, run: Run) -> Any:
    entry = OPTIMIZERS[run.optimizer]
    make: Any = entry.make
    lr = LEARNING_RATES.get(entry.plain, 1e-3) if run.lr is None else run.lr
    decay = 1e-2 if entry.plain == "AdamW" else 1e-4  # supplement, S2.4
    groups = tr_param_groups(model, lr=lr, weight_decay=decay)
    options = {"lr": lr, **OPTIONS.get(entry.plain, {})}
    if not entry.transition:
        return make(without_transition(groups), **options)
    tr = {"tr_schedule": run.schedule, **run.tr}
    return make(groups, total_steps=run.steps, **options, **tr)
