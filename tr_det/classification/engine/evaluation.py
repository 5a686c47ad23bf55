"""Accuracy and loss on the test images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.data.datasets import Data
from tr_det.classification.data.loader import evaluation_batches
from tr_det.runtime.processes import processes, rank, summed, take_from_first


def evaluate_model(config: ClassifierConfig, model: nn.Module, data: Data) -> dict[str, float]:
    """Return accuracy and loss on the test images, of the model as checkpoints keep it."""
    # Since the last forward began, each process' batch norms have gone their own way.
    take_from_first(model.buffers())
    size, workers = config.solver.batch_size, config.data.workers
    share = evaluation_batches(data.test, size, workers, rank(), processes())
    device = next(model.parameters()).device
    return evaluate(model, share, device, getattr(torch, config.run.precision))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """Return ``accuracy`` and ``top5`` in percent and the cross-entropy ``loss``, over all images.

    Args:
        model: a classifier, left in the mode it was in.
        batches: this process' share of the images.
        device: of the model.
        dtype: of the forward, under autocast if it is not float32.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(images)
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        found = [ranked[:, 0].sum(), ranked.sum(), loss, torch.tensor(len(labels))]
        totals += torch.stack([value.to(totals) for value in found])
    model.train(was_training)
    right, among, loss, count = summed(totals).tolist()
    return {"accuracy": 100 * right / count, "top5": 100 * among / count, "loss": loss / count}
