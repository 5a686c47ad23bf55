"""Losses by name: cross-entropy, and ReActNet's distributional loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossEntropy(nn.Module):
    """Cross-entropy with the labels.

    Args:
        label_smoothing: share of the target that goes to all classes, in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over images."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class Distributional(nn.Module):
    """Cross-entropy with a teacher's distribution in place of the labels.

    Liu et al., *ReActNet*, ECCV 2020, Eq. 9. It differs from their Kullback-Leibler divergence by
    the teacher's entropy, which has no gradient.

    Args:
        teacher: gives logits of the same classes; is kept in evaluation mode.
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)

    def forward(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over images."""
        with torch.no_grad():
            wanted = self.teacher(images).softmax(dim=1)
        return F.cross_entropy(logits, wanted)

    def train(self, mode: bool = True) -> Distributional:
        """Leave the teacher in evaluation mode."""
        return self
