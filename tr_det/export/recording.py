"""A model's forward pass as ``torch.export`` records it, for any number and size of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tr_det.core import quantized_layers


def record(
    model: nn.Module, example: Tensor, dynamic: Sequence[int] = (0, 2, 3)
) -> ExportedProgram:
    """Return the record of a quantized model in evaluation.

    Args:
        model: takes one tensor.
        example: an input; its dynamic dimensions are at least 2, as torch takes 1 for a constant.
        dynamic: dimensions whose size may differ later. Those that the model itself makes constant
            stay so.

    Raises:
        ValueError: a model without quantized layers, in training mode, or one that cannot be
            recorded; an example that is too small.
    """
    if not any(quantized_layers(model)):
        raise ValueError("the model has no quantized layers: there is nothing to export")
    training = next((name for name, part in model.named_modules() if part.training), None)
    if training is not None:
        part = f"its part {training}" if training else "the model"
        raise ValueError(f"{part} is in training mode: call eval() before the export")
    sizes = {dim: Dim.AUTO for dim in dynamic if dim < example.ndim}
    if any(example.shape[dim] < 2 for dim in sizes):
        raise ValueError(
            f"example of shape {tuple(example.shape)}: dimensions {[*sizes]} must be at least 2"
        )
    try:
        with torch.no_grad():
            return torch.export.export(model, (example,), dynamic_shapes=(sizes,), strict=False)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"torch.export cannot record {type(model).__name__}: {reason}") from error
