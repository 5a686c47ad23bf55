"""Quantized weights that all calls of a layer within one forward pass share.

A detector's head runs once per pyramid level, so a plain layer would quantize its weight five
times per step. Inside `quantized_weights_once` every level gets the *same* quantized tensor.
Autograd then adds up the levels' gradients and runs the quantizer's backward once. Values are the
same; gradients differ by the order of that sum.

As in ``torch.nn.utils.parametrize.cached``, the caller opens a scope around a forward pass. A cache
inside the layer would have to guess when it is stale. Therefore

  * modules hold no tensors of a past forward, and ``deepcopy``, ``pickle`` and ``state_dict`` need
    no special treatment;
  * another thread (``DataParallel``, the backward pass on a GPU) has its own scope, or none;
  * outside a scope nothing is reused, e.g. between two forwards that accumulate gradients.

Within a scope a result is reused only if none of its sources has changed (tensor objects, their
version counters and addresses, grad mode, training mode). It is dropped when autograd runs
backward through it, because that frees its graph. A weight changed in place through
``weight.data`` is not detected: open a scope around forward passes only. Evaluation has no cache
that outlives a scope: a scope already quantizes a head's weight once for all levels of an FPN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Entry(NamedTuple):
    """A result and its sources, kept alive so that no new tensor can get their addresses."""

    signature: tuple[Any, ...]
    sources: list[Tensor]
    result: Tensor


_Entries = dict[nn.Module, _Entry]
_ENTRIES: ContextVar[_Entries | None] = ContextVar("quantized_weights", default=None)


@contextmanager
def quantized_weights_once() -> Iterator[None]:
    """Quantize the weight of each layer once within this scope; inner scopes join the outer one.

    >>> from tr_det.core import QuantConfig, quantize_model, quantized_weights_once, set_scales
    >>> head = torch.nn.Sequential(torch.nn.Linear(3, 3))
    >>> _ = quantize_model(head, QuantConfig())
    >>> set_scales(head, lambda: head(torch.ones(8, 3)))
    >>> with quantized_weights_once():  # the second call reuses the first one's weight
    ...     loss = (head(torch.ones(8, 3)) + head(torch.ones(1, 3))).sum()
    >>> loss.backward()
    """
    if torch.compiler.is_compiling() or _ENTRIES.get() is not None:
        yield
        return
    entries: _Entries = {}
    token = _ENTRIES.set(entries)
    try:
        yield
    finally:
        _ENTRIES.reset(token)
        entries.clear()


@contextmanager
def quantized_weights_anew() -> Iterator[None]:
    """Ignore the surrounding scope, for code that must run the same way every time.

    An example is a region under ``torch.utils.checkpoint``: it runs again in the backward pass and
    must then save as many tensors as the first time.
    """
    token = _ENTRIES.set(None)
    try:
        yield
    finally:
        _ENTRIES.reset(token)


def computed_once(
    layer: nn.Module, depends_on: Callable[[], list[Tensor]], compute: Callable[[], Tensor]
) -> Tensor:
    """Return ``compute()``, or its earlier result in this scope for the same tensors.

    Args:
        layer: the key; one result is stored for each.
        depends_on: returns every tensor that the result depends on.
        compute: returns a tensor of any shape.
    """
    # A compiler removes repeated computations by itself.
    entries = None if torch.compiler.is_compiling() else _ENTRIES.get()
    if entries is None:
        return compute()
    sources = depends_on()
    signature = _signature(layer, sources)
    if signature is None:
        return compute()
    known = entries.get(layer)
    if known is not None and known.signature == signature:
        return known.result
    result = compute()
    entries[layer] = _Entry(signature, sources, result)
    if result.requires_grad and not result.is_leaf:

        def drop(_: Tensor) -> None:
            entries.pop(layer, None)

        result.register_hook(drop)  # type: ignore[no-untyped-call]
    return result


def _signature(layer: nn.Module, sources: list[Tensor]) -> tuple[Any, ...] | None:
    """Return a value that changes whenever a result is stale, or None if there is no such value."""
    # Subclasses (fake tensors, DTensor), inference tensors and those inside functorch's transforms
    # lack an address or a version.
    if any(type(t) not in (Tensor, nn.Parameter) or t.is_inference() for t in sources):
        return None
    device = sources[0].device.type
    try:
        return (
            layer.training,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
            *((t._version, t.data_ptr(), t.requires_grad) for t in sources),
        )
    except RuntimeError:
        return None
