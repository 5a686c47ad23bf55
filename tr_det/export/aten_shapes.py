"""What operations that move, pool, resize or reshape become in the intermediate form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from tr_det.export.conversion import VIEWS, Conversion, arguments, converts, pair, same_size

aten = torch.ops.aten
LAST = 2**63 - 1
"""End of a slice that ends with its dimension."""


@converts(aten.max_pool2d.default)
def _max_pool(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    c.emit(
        "MaxPool",
        node,
        a["self"],
        kernel_shape=pair(a["kernel_size"]),
        strides=pair(a["stride"], pair(a["kernel_size"])),
        pads=pair(a["padding"]) * 2,
        dilations=pair(a["dilation"]),
        ceil_mode=int(a["ceil_mode"]),
    )


@converts(aten.avg_pool2d.default)
def _average_pool(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    if a["divisor_override"] is not None:
        raise ValueError(f"cannot be exported: {node}, a pooling with divisor_override")
    c.emit(
        "AveragePool",
        node,
        a["self"],
        kernel_shape=pair(a["kernel_size"]),
        strides=pair(a["stride"], pair(a["kernel_size"])),
        pads=pair(a["padding"]) * 2,
        ceil_mode=int(a["ceil_mode"]),
        count_include_pad=int(a["count_include_pad"]),
    )


@converts(aten.adaptive_avg_pool2d.default, aten.mean.dim)
def _mean(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    ndim = a["self"].meta["val"].ndim
    if "output_size" in a:
        axes, keep, fits = [ndim - 2, ndim - 1], True, pair(a["output_size"]) == [1, 1]
    else:
        axes, keep, fits = [d % ndim for d in a["dim"]], a["keepdim"], bool(a["dim"])
    if not fits:
        raise ValueError(f"cannot be exported: {node}, an adaptive pooling to more than one value")
    c.emit("ReduceMean", node, a["self"], axes=axes, keepdims=int(keep))


@converts(aten.upsample_nearest2d.vec)
def _upsample(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    if a["scale_factors"] is not None:
        if not all(float(f).is_integer() for f in a["scale_factors"]):
            raise ValueError(
                f"cannot be exported: {node}, a resizing by {a['scale_factors']}; only by integers"
            )
        c.emit("Resize", node, a["input"], scales=[float(f) for f in a["scale_factors"]])
        return
    wanted = [_size(size) for size in a["output_size"]]
    for other in node.graph.nodes:  # up to this one: some value has the size
        shape = getattr(other.meta.get("val"), "shape", ())
        known = other.name in c.known and not any(isinstance(size, int) for size in wanted)
        if known and len(shape) == 4 and all(map(same_size, shape[2:], wanted)):
            c.emit("ResizeLike", node, a["input"], other)
            return
    raise ValueError(f"cannot be exported: {node}, a resizing to a size that no other value has")


def _size(arg: Any) -> Any:
    """Return an integer, or the symbol for one that is computed from the input's sizes."""
    return arg.meta["val"] if isinstance(arg, fx.Node) else arg


@converts(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def _reshape(c: Conversion, node: fx.Node) -> None:
    """Reshape; a size that is that of the same dimension is written as 0, as ONNX has it."""
    x, shape = node.args
    found = []
    for position, size in enumerate(shape):  # type: ignore[arg-type, union-attr]
        own = x.meta["val"].shape  # type: ignore[union-attr]
        if isinstance(size, int):
            found.append(size)
        elif position < len(own) and same_size(_size(size), own[position]):
            found.append(0)
        else:
            raise ValueError(f"cannot be exported: {node}, a shape computed from the input's")
    c.emit("Reshape", node, x, shape=found)


@converts(aten.flatten.using_ints)
def _flatten(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    ndim = a["self"].meta["val"].ndim
    if (a["start_dim"] % ndim, a["end_dim"] % ndim) != (1, ndim - 1):
        raise ValueError(f"cannot be exported: {node}, a flattening of other dimensions than 1 on")
    c.emit("Flatten", node, a["self"], axis=1)


@converts(aten.squeeze.dims, aten.squeeze.dim)
def _squeeze(c: Conversion, node: fx.Node) -> None:
    dims = node.args[1]
    dims = [dims] if isinstance(dims, int) else list(dims)  # type: ignore[arg-type]
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    dims = [dim for dim in dims if isinstance(shape[dim], int) and shape[dim] == 1]
    if dims:
        c.emit("Squeeze", node, node.args[0], axes=dims)
    else:  # ONNX Runtime takes no axes for all of them
        c.copy(node, node.args[0])


@converts(aten.cat.default)
def _concat(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    c.emit("Concat", node, *a["tensors"], axis=a["dim"])


@converts(aten.slice.Tensor)
def _slice(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    start, end = a["start"] or 0, LAST if a["end"] is None else a["end"]
    if not (isinstance(start, int) and isinstance(end, int)):
        raise ValueError(f"cannot be exported: {node}, a slice with computed bounds")
    if (start, end, a["step"]) == (0, LAST, 1):
        c.copy(node, a["self"])
        return
    c.emit("Slice", node, a["self"], starts=[start], ends=[end], axes=[a["dim"]], steps=[a["step"]])


@converts(aten.pad.default, aten.constant_pad_nd.default)
def _pad(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    if a.get("mode", "constant") != "constant":
        raise ValueError(f"cannot be exported: {node}, a padding with mode {a['mode']!r}")
    ndim = a["self"].meta["val"].ndim
    begins, ends = [0] * ndim, [0] * ndim
    for i, (before, after) in enumerate(zip(a["pad"][::2], a["pad"][1::2], strict=True)):
        begins[ndim - 1 - i], ends[ndim - 1 - i] = before, after
    c.emit("Pad", node, a["self"], pads=begins + ends, value=np.float32(a["value"] or 0))


@converts(aten.dropout.default, aten.dropout_.default)
def _dropout(c: Conversion, node: fx.Node) -> None:
    if arguments(node)["train"]:
        raise ValueError(f"cannot be exported: {node}, a dropout that drops (train=True)")
    c.alias(node, node.args[0])


@converts(aten.detach.default, aten.detach_.default, aten.alias.default)
def _alias(c: Conversion, node: fx.Node) -> None:
    c.alias(node, node.args[0])


@converts(aten.to.dtype)
def _float(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    if a["dtype"] != torch.float32 or a["copy"]:
        raise ValueError(f"cannot be exported: {node}, a conversion to {a['dtype']}")
    c.alias(node, a["self"])


@converts(aten.clone.default, aten.contiguous.default)
def _copy(c: Conversion, node: fx.Node) -> None:
    c.copy(node, node.args[0])


VIEWS.update(
    *(
        (aten.view.default, aten.reshape.default, aten._unsafe_view.default),
        (aten.flatten.using_ints, aten.squeeze.dims, aten.squeeze.dim),
        (aten.slice.Tensor, aten.contiguous.default),
    )
)
