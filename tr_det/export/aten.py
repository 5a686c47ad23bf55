"""What layers, norms, arithmetic and activations become in the intermediate form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from tr_det.export.conversion import (
    CONVERTERS,
    Conversion,
    Converter,
    arguments,
    converts,
    pair,
    value_of,
)
from tr_det.export.graph import Node

aten = torch.ops.aten


@converts(aten.conv2d.default)
def _conv(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    c.emit(
        "Conv",
        node,
        a["input"],
        weight=c.constant(a["weight"]),
        bias=c.constant(a["bias"]),
        strides=pair(a["stride"]),
        pads=pair(a["padding"]) * 2,
        dilations=pair(a["dilation"]),
        group=a["groups"],
    )


@converts(aten.linear.default)
def _linear(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    weight, bias = c.constant(a["weight"]), c.constant(a["bias"])
    c.emit("Linear", node, a["input"], weight=weight, bias=bias)


@converts(aten.batch_norm.default)
def _batch_norm(c: Conversion, node: fx.Node) -> None:
    """As torch computes it on CPUs: scale, then summand by one fused multiply-add."""
    a = arguments(node)
    if a["training"]:
        raise ValueError(f"cannot be exported: {node}, a batch norm that uses its batch")
    mean, var = (c.constants[a[key].name].float() for key in ("running_mean", "running_var"))
    scale = torch.rsqrt(var + a["eps"])
    if a["weight"] is not None:
        scale = scale * c.constants[a["weight"].name].float()
    bias = -mean.double() * scale.double()
    if a["bias"] is not None:
        bias = bias + c.constants[a["bias"].name].double()
    numbers = (_along_channels(node, n.float().cpu().numpy()) for n in (scale, bias))
    c.emit("Affine", node, a["input"], **dict(zip(("scale", "bias"), numbers, strict=True)))


@converts(aten.group_norm.default)
def _group_norm(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    weight, bias = c.constant(a["weight"]), c.constant(a["bias"])
    if weight is None or bias is None:
        raise ValueError(f"cannot be exported: {node}, a group norm without weight and bias")
    c.emit(
        "GroupNormalization",
        node,
        a["input"],
        weight=weight,
        bias=bias,
        num_groups=a["num_groups"],
        epsilon=a["eps"],
    )


@converts(aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor, aten.sub.Tensor)
def _arithmetic(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    if a.get("alpha", 1) != 1:
        raise ValueError(f"cannot be exported: {node}, a sum with alpha={a['alpha']}")
    op = {"add": "Add", "mul": "Mul", "sub": "Sub"}[node.target.__name__.split(".")[0].rstrip("_")]  # type: ignore[union-attr]
    x, other = a["self"], a["other"]
    if c.is_constant(x) and op != "Sub":
        x, other = other, x
    if not c.is_constant(other):
        c.emit(op, node, x, other)
        return
    numbers = _per_channel(c, node, x, other)
    kind = "scale" if op == "Mul" else "bias"
    parts = {"scale": None, "bias": None, kind: -numbers if op == "Sub" else numbers}
    c.emit("Affine", node, x, **parts)


@converts(aten.div.Tensor, aten.div_.Tensor)
def _divide(c: Conversion, node: fx.Node) -> None:
    x, other = node.args
    if not c.is_constant(other):
        c.emit("Div", node, x, other)
        return
    c.emit("Affine", node, x, scale=1 / _per_channel(c, node, x, other), bias=None)


def _per_channel(c: Conversion, node: fx.Node, x: Any, arg: Any) -> np.ndarray:
    """Return a constant operand as one number, or one for each channel (dimension 1) of x."""
    numbers = c.constant(arg) if isinstance(arg, fx.Node) else np.float32(arg)
    assert numbers is not None
    if numbers.size == 1:
        return numbers.reshape(()).astype(np.float32)
    size = x.meta["val"].shape
    shape = [1] * (len(size) - numbers.ndim) + list(numbers.shape)
    if len(shape) < 2 or not numbers.size == shape[1] == size[1]:
        raise ValueError(f"cannot be exported: {node}, an operand of shape {numbers.shape}")
    return _along_channels(node, numbers.astype(np.float32))


def _along_channels(node: fx.Node, numbers: np.ndarray) -> np.ndarray:
    """Return numbers for dimension 1 in a shape that broadcasts to the operation's value."""
    return numbers.reshape(-1, *[1] * (node.meta["val"].ndim - 2))


@converts(aten.relu.default, aten.relu_.default)
def _relu(c: Conversion, node: fx.Node) -> None:
    c.emit("Relu", node, node.args[0])


@converts(
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.relu6.default,
    aten.relu6_.default,
    aten.clamp.default,
    aten.clamp_.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
)
def _clip(c: Conversion, node: fx.Node) -> None:
    a = arguments(node)
    low, high = (a.get(k, a.get(f"{k}_val")) for k in ("min", "max"))
    if "relu6" in str(node.target):
        low, high = 0.0, 6.0
    as_float = [
        np.float32(fallback if bound is None else bound)
        for bound, fallback in ((low, -np.inf), (high, np.inf))
    ]
    c.emit("Clip", node, a["self"], min=as_float[0], max=as_float[1])


@converts(aten.prelu.default)
def _prelu(c: Conversion, node: fx.Node) -> None:
    slope = c.constant(node.args[1])
    assert slope is not None
    c.emit("PRelu", node, node.args[0], slope=_along_channels(node, slope))


@converts(aten.leaky_relu.default, aten.leaky_relu_.default)
def _leaky_relu(c: Conversion, node: fx.Node) -> None:
    slope = np.array([arguments(node)["negative_slope"]], np.float32)
    c.emit("PRelu", node, node.args[0], slope=slope)


@converts(aten.hardsigmoid.default, aten.hardsigmoid_.default)
def _hard_sigmoid(c: Conversion, node: fx.Node) -> None:
    c.emit("HardSigmoid", node, node.args[0], alpha=1 / 6, beta=0.5)


def _unary(op: str) -> Converter:
    return lambda c, node: c.emit(op, node, node.args[0])


for _op, _targets in {
    "HardSwish": (aten.hardswish.default, aten.hardswish_.default),
    "Sigmoid": (aten.sigmoid.default, aten.sigmoid_.default),
    "Tanh": (aten.tanh.default,),
}.items():
    CONVERTERS.update(dict.fromkeys(_targets, _unary(_op)))


@converts(aten.silu.default, aten.silu_.default)
def _silu(c: Conversion, node: fx.Node) -> None:
    x = c.value(node.args[0])
    gate = f"{value_of(node)}.gate"
    c.name(node, Node("Sigmoid", (x,), gate), Node("Mul", (x, gate), value_of(node)))
