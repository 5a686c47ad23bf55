"""A plain training loop for small data that fits in memory, and the accuracy it reaches."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tr_det.core.transition.schedule import TargetSchedule
from tr_det.digits.images import DigitImages


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: DigitImages,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    on_step: Callable[[int, Tensor], None] | None = None,
    schedule: str = "cosine",
) -> None:
    """Train with cross-entropy and a scheduled learning rate.

    Images are shifted by up to one pixel, which is all the augmentation that 8 x 8 digits bear.

    Args:
        model: classifier of the images.
        optimizer: its learning rates are taken as initial ones.
        data: images and labels.
        steps: optimizer updates.
        batch_size: images per update, drawn without replacement epoch by epoch.
        seed: of the batches and the shifts.
        on_step: called with (step, loss) after each update.
        schedule: course of the learning rate, by the names that a target TR has.
    """
    generator = torch.Generator().manual_seed(seed)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, TargetSchedule(schedule, steps))
    model.train()
    count = len(data.train_labels)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(count, generator=generator)
        chosen, order = order[:batch_size], order[batch_size:]
        down, right = (int(shift) for shift in torch.randint(-1, 2, (2,), generator=generator))
        images = torch.roll(data.train_images[chosen], (down, right), dims=(2, 3))
        loss = F.cross_entropy(model(images), data.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if on_step is not None:
            on_step(step, loss.detach())


@torch.no_grad()
def accuracy(model: nn.Module, data: DigitImages) -> float:
    """Return the share of held-out images classified right, in percent."""
    was_training = model.training
    model.eval()
    right = (model(data.test_images).argmax(1) == data.test_labels).float().mean()
    model.train(was_training)
    return 100.0 * right.item()
