"""Update, codes and transition count of all quantized weights in one kernel, for GPUs.

Weights of all layers are addressed through a table, so that one launch serves them all and each of
weight, gradient, momentum and code is read once and written once (SGD: 22 bytes per weight, the
least there is; from a direction: 14). Counts are integers, so their sum does not depend on the
order in which blocks finish. Nothing is brought to the host.

Imported only for CUDA tensors. ``TRITON_INTERPRET=1`` runs the kernel on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tr_det.core.ops.backends import on_device_of, send
from tr_det.core.ops.grid import SCALE_FLOOR
from tr_det.core.ops.step import LayerStep, SGDOptions

BLOCK = 2048
"""Elements per program."""

_ROW = 6
"""Numbers of a layer in the table of addresses."""


@triton.jit  # type: ignore[untyped-decorator]
def _step_kernel(  # type: ignore[no-untyped-def]
    addresses,
    grids,
    starts,
    owners,
    talr_ptr,
    keep_ptr,
    counts,
    momentum,
    undamped,
    weight_decay,
    SGD: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ROW: tl.constexpr,
    FLOOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    layer = tl.load(owners + program).to(tl.int64)
    row = addresses + layer * ROW
    weight = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), ALIGNMENT)
    direction = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.float32)), ALIGNMENT)
    buffer = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(tl.float32)), ALIGNMENT)
    codes = tl.multiple_of(tl.load(row + 3).to(tl.pointer_type(tl.int8)), ALIGNMENT)
    scale = tl.load(tl.load(row + 4).to(tl.pointer_type(tl.float32)))
    scale = tl.where(scale < FLOOR, FLOOR, scale)
    size = tl.load(row + 5)
    talr = tl.load(talr_ptr + layer)
    keep = tl.load(keep_ptr + layer)
    alpha = tl.load(grids + layer * 4)
    beta = tl.load(grids + layer * 4 + 1)
    step = scale * tl.load(grids + layer * 4 + 2)
    binary = tl.load(grids + layer * 4 + 3) > 0
    start = tl.multiple_of(tl.load(starts + program), BLOCK)
    index = start + tl.arange(0, BLOCK)
    # A block without a mask is read and written sixteen bytes at a time.
    if start + BLOCK <= size:
        changed = _block(
            weight + index,
            direction + index,
            buffer + index,
            codes + index,
            None,
            talr,
            keep,
            step,
            alpha,
            beta,
            binary,
            momentum,
            undamped,
            weight_decay,
            SGD,
            MOMENTUM,
            NESTEROV,
            MAXIMIZE,
        )
        tl.atomic_add(counts + layer, tl.sum(changed.to(tl.int32), axis=0))
    else:
        valid = index < size
        changed = _block(
            weight + index,
            direction + index,
            buffer + index,
            codes + index,
            valid,
            talr,
            keep,
            step,
            alpha,
            beta,
            binary,
            momentum,
            undamped,
            weight_decay,
            SGD,
            MOMENTUM,
            NESTEROV,
            MAXIMIZE,
        )
        tl.atomic_add(counts + layer, tl.sum((changed & valid).to(tl.int32), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _block(  # type: ignore[no-untyped-def]
    weight,
    direction,
    buffer,
    codes,
    mask,
    talr,
    keep,
    step,
    alpha,
    beta,
    binary,
    momentum,
    undamped,
    weight_decay,
    SGD: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
):
    w = tl.load(weight, mask=mask)
    g = tl.load(direction, mask=mask)
    if SGD:
        if MAXIMIZE:
            g = -g
        g = g + weight_decay * w
        if MOMENTUM:
            b = momentum * tl.load(buffer, mask=mask) + undamped * g
            tl.store(buffer, b, mask=mask)
            g = g + momentum * b if NESTEROV else b
        w = w - talr * g
    else:
        w = w * keep + talr * g
    tl.store(weight, w, mask=mask)
    # div_rn rounds as IEEE asks; Triton's `/` does not, and codes must not depend on that.
    code = tl.div_rn(w, tl.zeros_like(w) + step)
    code = tl.where(code < alpha, alpha, code)
    code = tl.where(code > beta, beta, code)
    # Half to even by float32's own rounding: 1.5 * 2^23 leaves no fraction bits.
    code = (code + 12582912.0) - 12582912.0
    code = tl.where(binary, tl.where(w < 0, -1.0, 1.0), code).to(tl.int8)
    changed = code != tl.load(codes, mask=mask)
    tl.store(codes, code, mask=mask)
    return changed


class StepKernel:
    """Launches the kernel; keeps the tables that describe the layers on the device."""

    def __init__(self) -> None:
        self._shapes: tuple[Any, ...] = ()
        self._pointers: tuple[int, ...] = ()
        self._alignment = 1
        self._addresses = self._grids = self._starts = self._owners = self._sizes = torch.empty(0)

    def __call__(
        self,
        layers: list[LayerStep],
        talr: Tensor,
        keep: Tensor | None = None,
        sgd: SGDOptions | None = None,
    ) -> Tensor:
        """Update all layers in place.

        Args:
            layers: on one device, at least one.
            talr: U, shape (layers,), float32.
            keep: what decoupled decay leaves of each weight, likewise; None for all of it.
            sgd: take the directions for gradients and make SGD's step; None takes them as they are.

        Returns:
            Share of the codes that changed, shape (layers,), float32.
        """
        self._describe(layers)
        counts = torch.zeros(len(layers), dtype=torch.int32, device=talr.device)
        options = sgd or SGDOptions()
        with on_device_of(talr):
            _step_kernel[(len(self._owners),)](
                self._addresses,
                self._grids,
                self._starts,
                self._owners,
                talr,
                torch.ones_like(talr) if keep is None else keep,
                counts,
                options.momentum,
                1.0 - options.dampening,
                options.weight_decay,
                SGD=sgd is not None,
                MOMENTUM=options.momentum != 0,
                NESTEROV=options.nesterov,
                MAXIMIZE=options.maximize,
                ALIGNMENT=self._alignment,
                ROW=_ROW,
                FLOOR=SCALE_FLOOR,
                BLOCK=BLOCK,
            )
        for layer in layers:  # so that autograd and caches see that these have changed
            for changed in (layer.weight, layer.buffer):
                if changed is not None:
                    torch.autograd.graph.increment_version(changed)
        return counts.to(torch.float32) / self._sizes

    def _describe(self, layers: list[LayerStep]) -> None:
        """Bring the tables up to date; only gradients' addresses change as a rule."""
        device = layers[0].weight.device
        shapes = (device, *((layer.weight.numel(), layer.grid) for layer in layers))
        if shapes != self._shapes:
            sizes = [layer.weight.numel() for layer in layers]
            spans = [(i, start) for i, size in enumerate(sizes) for start in range(0, size, BLOCK)]
            self._owners = send([i for i, _ in spans], torch.int32, device)
            self._starts = send([start for _, start in spans], torch.int64, device)
            grids = [
                number
                for layer in layers
                for number in (
                    layer.grid.alpha,
                    layer.grid.beta,
                    1.0 / layer.grid.gamma,
                    float(layer.grid.binary),
                )
            ]
            self._grids = send(grids, torch.float32, device)
            self._sizes = send(sizes, torch.float32, device)
            self._shapes, self._pointers = shapes, ()
        pointers = tuple(
            number
            for layer in layers
            for number in (
                layer.weight.data_ptr(),
                layer.direction.data_ptr(),
                0 if layer.buffer is None else layer.buffer.data_ptr(),
                layer.codes.data_ptr(),
                layer.scale.data_ptr(),
                layer.weight.numel(),
            )
        )
        if pointers != self._pointers:
            # Gradients may be views into a bucket of DDP's, at any multiple of four bytes.
            places = (place for i, place in enumerate(pointers) if i % _ROW != _ROW - 1)
            self._alignment = 16 if all(place % 16 == 0 for place in places) else 1
            self._addresses = send(list(pointers), torch.int64, device)
            self._pointers = pointers
