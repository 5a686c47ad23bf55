"""What updates do to quantized weights, measured from outside the optimizer, so for any of them.

Analyses of *Scheduling Weight Transitions for QAT* (ICCV 2025): the effective step size (Fig. 1,
Eq. S3), the transition rate (Eq. 5) and the distance of the normalised latent weights to the
nearest transition point (Fig. S3d), in units of codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tr_det.core import Quantizer, quantized_layers
from tr_det.core.transition.rate import effective_step_size, transition_rate


@dataclass(frozen=True)
class Sight:
    """What was seen of every quantized layer, each of shape (layers,), float32 on the CPU.

    Attributes:
        rate: share of codes that changed since the codes were remembered.
        step_size: mean change of the quantized weights' levels.
        distance: mean distance of normalised weights to the nearest transition point.
    """

    rate: Tensor
    step_size: Tensor
    distance: Tensor


class WeightWatcher:
    """Looks at a model's quantized weights before and after an update.

    Args:
        model: a model that `quantize_model` has converted; plain ones have no layer to watch.

    Attributes:
        names: of the watched layers.
    """

    def __init__(self, model: nn.Module) -> None:
        watched = {n: x for n, x in quantized_layers(model) if x.weight_quantizer is not None}
        self.names = tuple(watched)
        self._layers = tuple(watched.values())
        self._codes: list[Tensor] = []

    @torch.no_grad()
    def remember(self) -> None:
        """Take the codes before an update; the scales must have been set."""
        self._codes = [_quantizer(layer).codes(layer.weight) for layer in self._layers]

    @torch.no_grad()
    def look(self) -> Sight:
        """Compare with the remembered codes; one transfer from the device."""
        columns = []
        for layer, before in zip(self._layers, self._codes, strict=True):
            quantizer = _quantizer(layer)
            codes = quantizer.codes(layer.weight)
            columns.append(
                torch.stack(
                    [
                        transition_rate(codes, before),
                        effective_step_size(codes, before, quantizer.grid.gamma),
                        distances(quantizer, layer.weight).mean(),
                    ]
                )
            )
        return Sight(*(torch.stack(columns).cpu().T if columns else torch.zeros(3, 0)))


@torch.no_grad()
def distances(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """Return each weight's distance to the nearest transition point, in units of codes.

    >>> from tr_det.core import build_quantizer
    >>> quantizer = build_quantizer("fixed_grid", bits=2, signed=True)  # scale 1: codes are 2 w
    >>> [round(d, 2) for d in distances(quantizer, torch.tensor([0.2, 0.3, -5.0])).tolist()]
    [0.1, 0.1, 0.5]
    """
    points = quantizer.transition_points()
    units = quantizer.normalized(weight).flatten().contiguous()
    after = torch.bucketize(units, points).clamp(1, max(1, len(points) - 1))
    below = (units - points[after - 1]).abs()
    return below if len(points) == 1 else torch.minimum(below, (units - points[after]).abs())


def _quantizer(layer: nn.Module) -> Quantizer:
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, Quantizer)
    return quantizer
