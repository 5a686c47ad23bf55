"""Weights quantized once per forward pass, however often a layer is called in it.

A detector's head runs once per pyramid level, so a plain layer would quantize its weight five
times per step. Inside `quantized_weights_once` every level gets the *same* quantized tensor:
autograd then adds up the levels' gradients and runs the quantizer's backward once. Values are the
same; gradients differ by the order of that sum.

The model to follow is ``torch.nn.utils.parametrize.cached``: a scope that somebody opens around a
forward pass, instead of a cache that lives in the layer and has to guess when it is stale. So

  * modules hold no tensors of a past forward: ``deepcopy``, ``pickle`` and ``state_dict`` know
    nothing of it;
  * another thread (``DataParallel``, the backward pass on a GPU) has its own scope, or none;
  * outside a scope nothing is reused: gradient accumulation, or two forwards before one backward,
    need no care.

Within a scope an entry is used again only if nothing it was computed from has changed (tensor
objects, their version counters and addresses, grad mode, train or eval), and it is dropped when
autograd runs backward through it, because the graph behind it is spent. What cannot be seen is a
weight changed in place through ``weight.data`` while the scope is open: open it around forward
passes only. Evaluation gets no cache that outlives a scope: it would double the weights' memory
to save the cost of one level in five.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Entry(NamedTuple):
    """A result, and what it was computed from; while sources live, their addresses are theirs."""

    signature: tuple[Any, ...]
    sources: list[Tensor]
    result: Tensor


_Entries = dict[nn.Module, _Entry]
_ENTRIES: ContextVar[_Entries | None] = ContextVar("quantized_weights", default=None)


@contextmanager
def quantized_weights_once() -> Iterator[None]:
    """Quantize the weight of each layer once within this scope; scopes inside join the outer one.

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
    """Ignore the surrounding scope: for code that must do the same whenever it is run.

    A region under ``torch.utils.checkpoint`` is such code: its second run happens in the backward
    pass and must save as many tensors as the first one.
    """
    token = _ENTRIES.set(None)
    try:
        yield
    finally:
        _ENTRIES.reset(token)


def once(
    layer: nn.Module, depends_on: Callable[[], list[Tensor]], compute: Callable[[], Tensor]
) -> Tensor:
    """Return ``compute()``, or what it returned earlier in this scope for the same tensors.

    Args:
        layer: whose result it is; the key.
        depends_on: gives every tensor that the result depends on.
        compute: what to call.
    """
    if torch.compiler.is_compiling():  # a compiler removes repeated computations by itself
        return compute()
    entries = _ENTRIES.get()
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
    """Return what must be equal for a result to be used again, or None if it cannot be told."""
    # Subclasses (fake tensors, DTensor), inference tensors and those inside functorch's transforms
    # have no address or no version to tell a change by.
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
