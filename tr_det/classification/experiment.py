"""One QAT run on the embedded digits, in seconds: what the studies repeat and compare."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tr_det import core
from tr_det.classification.digits import DigitImages, load_digit_images
from tr_det.classification.resnet_cifar import ResNetCIFAR
from tr_det.classification.training import accuracy, train
from tr_det.core import QuantConfig, QuantRule, quantize_model, tr_param_groups, without_transition

FIRST_AND_LAST = (QuantRule(pattern="conv1", skip=True), QuantRule(pattern="fc", skip=True))

LEARNING_RATES = {"SGD": 0.1, "RMSprop": 1e-3, "Adagrad": 1e-2}
"""Base learning rates (Table S8 for SGD); 1e-3 for the others of the paper."""

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
        watch: updates between two looks at the weights (`Outcome.watched`); 0 for none.
    """

    optimizer: str = "SGDT"
    bits: int = 2
    steps: int = 600
    seed: int = 0
    lr: float | None = None
    schedule: str = "cosine"
    learn_weight_scale: bool | None = None
    tr: dict[str, Any] = field(default_factory=dict)
    watch: int = 0


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
    """

    accuracy: float
    running: Tensor
    target: Tensor
    talr: Tensor
    factor: float
    first_target: Tensor

    def tracking_error(self) -> float:
        """Return mean |K - R| / R_0 over layers and updates after the first tenth."""
        skip = len(self.running) // 10
        error = (self.running - self.target).abs()[skip:] / self.first_target
        return error.mean().item()


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
        scheduled = hasattr(core, run.optimizer)
        config = QuantConfig(
            weight_bits=run.bits,
            act_bits=run.bits,
            learn_weight_scale=(
                not scheduled if run.learn_weight_scale is None else run.learn_weight_scale
            ),
            rules=(*FIRST_AND_LAST, QuantRule(pattern="blocks.*", output_scale=False)),
        )
        quantize_model(model, config)
        optimizer = self._optimizer(model, run, scheduled)
        history: list[tuple[Tensor, Tensor, Tensor]] = []

        def record(step: int, loss: Tensor) -> None:
            metrics = optimizer.transition_metrics()
            history.append((metrics.running, metrics.target, metrics.talr))

        train(
            model,
            optimizer,
            self.data,
            run.steps,
            seed=run.seed + 1000,
            schedule=run.schedule,
            on_step=record if scheduled else None,
        )
        columns = [torch.stack(column) for column in zip(*history, strict=True)]
        running, target, talr = columns or [torch.zeros(0)] * 3
        groups = [group for group in optimizer.param_groups if "tr_factor" in group]
        factor = groups[0]["tr_factor"] if groups else math.nan
        first_target = torch.tensor([factor * math.sqrt(group["bits"]) for group in groups])
        return Outcome(accuracy(model, self.data), running, target, talr, factor, first_target)

    def _optimizer(self, model: nn.Module, run: Run, scheduled: bool) -> Any:
        name = run.optimizer.removesuffix("T") if scheduled else run.optimizer
        lr = LEARNING_RATES.get(name, 1e-3) if run.lr is None else run.lr
        decay = 1e-2 if name == "AdamW" else 1e-4  # supplement, S2.4
        groups = tr_param_groups(model, lr=lr, weight_decay=decay)
        options = {"lr": lr, **OPTIONS.get(name, {})}
        if scheduled:
            tr = {"tr_schedule": run.schedule, **run.tr}
            return getattr(core, run.optimizer)(groups, total_steps=run.steps, **options, **tr)
        return getattr(torch.optim, name)(without_transition(groups), **options)
