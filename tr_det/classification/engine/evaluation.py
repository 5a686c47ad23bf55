"""What a classifier is worth on test images, and whether they have its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.data.images import Data
from tr_det.classification.data.loader import evaluation_batches
from tr_det.runtime.processes import processes, rank, summed, take_from_first


def check_classes(
    config: ClassifierConfig, saved: Any, own: Sequence[str], path: str | Path
) -> None:
    """Raise ValueError unless the data have the classes that a file was made for.

    Args:
        config: of the data.
        saved: names of the classes; of older files their number.
        own: names of the data's classes.
        path: of the file.
    """
    if saved not in (list(own), len(own)):
        apart = sorted({*saved} ^ {*own})[:5] if isinstance(saved, list) else []
        what = f"only one has {apart}" if apart else f"it has {len(own)}"
        raise ValueError(f"data.root={config.data.root!r}: must have the classes of {path}; {what}")


def autocast(config: ClassifierConfig, device: torch.device) -> torch.autocast:
    """Return the context of a forward in ``run.precision``."""
    dtype = getattr(torch, config.run.precision)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@torch.no_grad()
def evaluate_model(config: ClassifierConfig, model: nn.Module, data: Data) -> dict[str, float]:
    """Return ``accuracy`` and ``top5`` in percent and the cross-entropy ``loss``, over all images.

    Args:
        config: the run.
        model: a classifier, left in the mode it was in; evaluated as checkpoints keep it.
        data: its test images, shared out among the processes.
    """
    # Since the last forward began, each process' batch norms have gone their own way.
    take_from_first(model.buffers())
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    size, workers = config.solver.batch_size, config.data.workers
    for images, labels in evaluation_batches(data.test, size, workers, rank(), processes()):
        images, labels = images.to(device), labels.to(device)
        with autocast(config, device):
            logits = model(images)
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        found = [ranked[:, 0].sum(), ranked.sum(), loss, torch.tensor(len(labels))]
        totals += torch.stack([value.to(totals) for value in found])
    model.train(was_training)
    right, among, loss, count = summed(totals).tolist()
    return {"accuracy": 100 * right / count, "top5": 100 * among / count, "loss": loss / count}
