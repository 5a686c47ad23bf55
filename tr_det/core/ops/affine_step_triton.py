"""Update, codes and transition counts of all quantized weights in one kernel, for GPUs.

Weights of all layers are addressed through a table, so that one launch serves them all. Weight,
gradient and momentum are read once, weight, momentum and code written once (SGD: 21 bytes per
weight, the minimum; from a direction: 13). Counts are integers, so their sum does not depend on the
order in which blocks finish. Nothing is copied to the host.

Imported only for CUDA tensors. ``TRITON_INTERPRET=1`` runs the kernel on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tr_det.core.ops.affine_grid import SCALE_FLOOR, Affine
from tr_det.core.ops.affine_step import FREE, LayerStep, SGDOptions
from tr_det.core.ops.backends import channels_of, on_device_of, send

BLOCK = 2048
"""Elements per program."""

_ROW, _GRID = 10, 8
"""Length of a layer's row in the table of addresses and sizes, and in that of grids."""


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
    PER_CHANNEL: tl.constexpr,
    SHIFTED: tl.constexpr,
    HELD: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ROW: tl.constexpr,
    GRID: tl.constexpr,
    FLOOR: tl.constexpr,
    FREE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    layer = tl.load(owners + program).to(tl.int64)
    row = addresses + layer * ROW
    grid = grids + layer * GRID
    size = tl.load(row + 7)
    talr = tl.load(talr_ptr + layer)
    keep = tl.load(keep_ptr + layer)
    start = tl.multiple_of(tl.load(starts + program), BLOCK)
    index = start + tl.arange(0, BLOCK)
    weight = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), ALIGNMENT) + index
    direction = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.float32)), ALIGNMENT)
    buffer = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(tl.float32)), ALIGNMENT)
    codes = tl.multiple_of(tl.load(row + 3).to(tl.pointer_type(tl.int8)), ALIGNMENT) + index
    # Two versions of the body: a block without a mask is read and written sixteen bytes at a time.
    for partial in tl.static_range(2):
        if (start + BLOCK > size) == (partial == 1):
            mask = index < size if partial == 1 else None
            w = tl.load(weight, mask=mask)
            # Not the stored codes: the weight may have been edited since the last step.
            before = _codes(row, grid, index, mask, w, PER_CHANNEL, SHIFTED, FLOOR)
            g = tl.load(direction + index, mask=mask)
            if SGD:
                if MAXIMIZE:
                    g = -g
                g = g + weight_decay * w
                if MOMENTUM:
                    b = momentum * tl.load(buffer + index, mask=mask) + undamped * g
                    tl.store(buffer + index, b, mask=mask)
                    g = g + momentum * b if NESTEROV else b
                w = w - talr * g
            else:
                w = w * keep + talr * g
            tl.store(weight, w, mask=mask)
            code = _codes(row, grid, index, mask, w, PER_CHANNEL, SHIFTED, FLOOR)
            changed = code != before
            if HELD:
                address = tl.load(row + 6)
                held = tl.multiple_of(address.to(tl.pointer_type(tl.int8)), ALIGNMENT) + index
                there = address != 0 if mask is None else (address != 0) & mask
                frozen = tl.load(held, mask=there, other=FREE)
                code = tl.where(frozen != FREE, frozen, code)
                changed = changed & (frozen == FREE)
            tl.store(codes, code, mask=mask)
            changed = changed if mask is None else changed & mask
            tl.atomic_add(counts + layer, tl.sum(changed.to(tl.int32), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _codes(  # type: ignore[no-untyped-def]
    row,
    grid,
    index,
    mask,
    w,
    PER_CHANNEL: tl.constexpr,
    SHIFTED: tl.constexpr,
    FLOOR: tl.constexpr,
):
    """Return the codes of weights as int8; codes above 127 have the bits of uint8."""
    low = tl.load(grid)
    high = tl.load(grid + 1)
    scale_ptr = tl.load(row + 4).to(tl.pointer_type(tl.float32))
    if PER_CHANNEL:
        # 32 bits hold an index within a layer; a division in 64 bits is several times slower.
        place = (index.to(tl.int32) // tl.load(row + 9).to(tl.int32)) % tl.load(row + 8).to(
            tl.int32
        )
        scale = tl.load(scale_ptr + place, mask=mask)
    else:
        place = 0
        scale = tl.load(scale_ptr)
    moved = w
    if SHIFTED:
        address = tl.load(row + 5)
        there = address != 0
        if PER_CHANNEL and mask is not None:
            there = there & mask
        moved = w - tl.load(address.to(tl.pointer_type(tl.float32)) + place, mask=there, other=0.0)
    scale = tl.where(scale < FLOOR, FLOOR, scale)
    # div_rn rounds as IEEE requires, Triton's `/` does not: codes must equal the CPU's.
    step = tl.div_rn(scale, tl.zeros_like(scale) + tl.load(grid + 2))
    code = tl.div_rn(moved, tl.zeros_like(w) + step) - tl.load(grid + 7)
    code = tl.where(code < low, low, code)
    code = tl.where(code > high, high, code)
    # Rounds half to even: float32 numbers near 1.5 * 2^23 have no fraction bits.
    code = (code + 12582912.0) - 12582912.0 + tl.load(grid + 3)
    if_sign = tl.where(w < 0, tl.load(grid + 5), tl.load(grid + 6))
    return tl.where(tl.load(grid + 4) > 0, if_sign, code).to(tl.int32).to(tl.int8)


class StepKernel:
    """The kernel with its tables of layers, which stay on the device."""

    def __init__(self) -> None:
        self._shapes: tuple[Any, ...] = ()
        self._pointers: tuple[int, ...] = ()
        self._alignment = 1
        self._addresses = self._grids = self._starts = self._owners = torch.empty(0)

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
            keep: factor of each weight from decoupled decay, likewise; None for 1.
            sgd: options of SGD's step, with the directions as gradients; None: plain directions.

        Returns:
            The number of codes that changed, without held ones, shape (layers,), int32.
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
                PER_CHANNEL=any(layer.affine.axis is not None for layer in layers),
                SHIFTED=any(layer.shift is not None for layer in layers),
                HELD=any(layer.held is not None for layer in layers),
                ALIGNMENT=self._alignment,
                ROW=_ROW,
                GRID=_GRID,
                FLOOR=SCALE_FLOOR,
                FREE=FREE,
                BLOCK=BLOCK,
            )
        for layer in layers:  # so that autograd and caches notice the change
            for changed in (layer.weight, layer.buffer):
                if changed is not None:
                    torch.autograd.graph.increment_version(changed)
        return counts

    def _describe(self, layers: list[LayerStep]) -> None:
        """Update the tables; usually only the addresses of gradients have changed."""
        device = layers[0].weight.device
        shapes = (device, *((layer.weight.numel(), layer.affine) for layer in layers))
        if shapes != self._shapes:
            sizes = [layer.weight.numel() for layer in layers]
            spans = [(i, start) for i, size in enumerate(sizes) for start in range(0, size, BLOCK)]
            self._owners = send([i for i, _ in spans], torch.int32, device)
            self._starts = send([start for _, start in spans], torch.int64, device)
            grids = [number for layer in layers for number in _grid_row(layer.affine)]
            self._grids = send(grids, torch.float32, device)
            self._shapes, self._pointers = shapes, ()
        pointers = tuple(number for layer in layers for number in _address_row(layer))
        if pointers != self._pointers:
            # Gradients may be views into a DDP bucket, at any multiple of four bytes.
            places = (place for i, place in enumerate(pointers) if i % _ROW in (0, 1, 2, 3, 6))
            self._alignment = 16 if all(place % 16 == 0 for place in places) else 1
            self._addresses = send(list(pointers), torch.int64, device)
            self._pointers = pointers


def _address_row(layer: LayerStep) -> tuple[int, ...]:
    read = [layer.scale, layer.shift, layer.held]
    tensors = [layer.weight, layer.direction, layer.buffer, layer.codes, *read]
    addresses = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    return (*addresses, layer.weight.numel(), *channels_of(layer.weight, layer.affine.axis))


def _grid_row(a: Affine) -> tuple[float, ...]:
    return (*a.bounds, a.divisor, a.base, a.sign, a.low, a.high, a.lead)
