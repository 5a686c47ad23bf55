"""Which part of a quantized model's state a bit-packed file stores as it is.

All of it but the latent weights, which codes stand for, and what quantizers say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tr_det.core import QuantConv2d, Quantizer, QuantLinear, quantized_layers
from tr_det.export.packed_file import OWN, Arrays

Layer = QuantConv2d | QuantLinear
PARTS = {"weight": "weight_quantizer", "input": "input_quantizer"}
"""What is quantized -> the layer's child that does it."""


def joined(name: str, rest: str) -> str:
    """Return the key of something in a module; the model's own name is empty."""
    return f"{name}.{rest}" if name else rest


def latent_keys(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yield the key and the layer of every latent weight, under each of the layer's names."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Layer) and module.weight_quantizer is not None:
            yield joined(name, "weight"), module


def quantizer_prefixes(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Yield the prefix of the keys and the quantizer, for those of layers, under each name."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Layer):
            for child in PARTS.values():
                quantizer = getattr(module, child)
                if quantizer is not None:
                    yield f"{joined(name, child)}.", quantizer


def plain_state(model: nn.Module) -> dict[str, Any]:
    """Return the part of the state dict that is stored as it is."""
    skipped = {key for key, _ in latent_keys(model)}
    for prefix, _ in quantizer_prefixes(model):
        skipped |= {f"{prefix}held", f"{prefix}_extra_state"}
    return {key: value for key, value in model.state_dict().items() if key not in skipped}


def sharing_a_weight(model: nn.Module) -> list[list[tuple[str, Layer]]]:
    """Return names and layers with a quantized weight, those with the same one together."""
    groups: dict[int, list[tuple[str, Layer]]] = {}
    for name, layer in quantized_layers(model):
        if layer.weight_quantizer is not None:
            groups.setdefault(id(layer.weight), []).append((name, layer))
    return list(groups.values())


def stored_tensors(model: nn.Module) -> tuple[Arrays, dict[str, str], dict[Any, str]]:
    """Return the tensors to store, shared keys -> stored ones, and places in memory -> keys.

    Raises:
        ValueError: a value that is no tensor of a type that numpy knows, or a key with ``OWN``.
    """
    tensors: Arrays = {}
    shared: dict[str, str] = {}
    places: dict[Any, str] = {}
    for key, value in plain_state(model).items():
        known = isinstance(value, Tensor) and value.dtype != torch.bfloat16
        if not known or OWN in key:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"state {key!r} ({kind}): must be a tensor of a type that numpy has, its key "
                f"without {OWN!r}"
            )
        stored = places.setdefault(place_of(value) or key, key)
        if stored == key:
            tensors[key] = as_array(value)
        else:
            shared[key] = stored
    return tensors, shared, places


def place_of(tensor: Tensor) -> Any:
    """Return what two tensors have in common only if they are the same memory; None if empty."""
    if not tensor.numel():
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor's numbers, contiguous."""
    found: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return found
