"""From a quantized torch model to the intermediate form.

``torch.export`` records the model with its quantized layers as leaves: while it does, each of them
is one call of an operator that carries the layer's name. What it records are ATen operations at the
level of ``conv2d`` and ``batch_norm``; `tr_det.export.aten` says what each of them becomes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import free_symbols, is_concrete_int

import tr_det.export.aten
import tr_det.export.aten_shapes  # noqa: F401  registers converters
from tr_det.core import quantized_layers
from tr_det.export.conversion import CONVERTERS, Conversion, value_of
from tr_det.export.graph import INPUT, Graph
from tr_det.export.layers import Layer, layer_nodes, weights_of
from tr_det.export.recording import record

_LAYERS: ContextVar[Mapping[str, Layer]] = ContextVar("layers")
_LIBRARY = torch.library.Library("tr_det_export", "FRAGMENT")
_LIBRARY.define("quantized_layer(Tensor x, str name) -> Tensor")


@torch.library.register_fake("tr_det_export::quantized_layer", lib=_LIBRARY)
def _shaped(x: Tensor, name: str) -> Tensor:
    """Return what has the shape of a quantized layer's output."""
    layer = _LAYERS.get()[name]
    return layer._function(x, layer.weight, None)


def _run(x: Tensor, name: str) -> Tensor:
    layer = _LAYERS.get()[name]
    return type(layer)._quantized(layer, x)


_LIBRARY.impl("quantized_layer", _run, "CompositeExplicitAutograd")
LEAF = torch.ops.tr_det_export.quantized_layer.default


class Traced(NamedTuple):
    """What `trace` returns.

    Attributes:
        model: that was given.
        graph: the intermediate form, not yet folded.
        program: torch's own record of the model; see `conversion.value_of`.
        layers: the quantized layers by name.
    """

    model: nn.Module
    graph: Graph
    program: Any
    layers: dict[str, Layer]


def trace(model: nn.Module, example: Tensor, names: Sequence[str] = ()) -> Traced:
    """Return the intermediate form of a quantized model in evaluation.

    Args:
        model: takes one tensor; returns a tensor, or a tuple, list or dict of tensors.
        example: an input, float32; batch, height and width are at least 2. They may differ later,
            but for a height and width that the model itself makes constant.
        names: of the outputs; by default the dict's keys, or output, output_1, ...

    Raises:
        ValueError: what cannot be represented, by name: operations, quantizers, uncalibrated
            layers, numbers that are not finite; what `record` refuses; or a model that fixes the
            batch, or ties its sizes to each other.
    """
    if example.dtype != torch.float32:
        raise ValueError(f"the example is {example.dtype}: export a float32 model (call float())")
    layers = dict(quantized_layers(model))
    weights = {name: weights_of(layer, name) for name, layer in layers.items()}
    with known(layers), _as_leaves(layers):
        program = record(model, example)
    conversion = Conversion(_constants(program, model))
    unknown: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or isinstance(node.meta.get("val"), torch.SymInt):
            continue  # sizes are looked at where they are used
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            continue  # of a conversion to the type that it has
        if unknown or node.target not in (LEAF, *CONVERTERS):
            # What follows an unknown operation has no values; only its name is of interest.
            known_or_part = node.target in (LEAF, *CONVERTERS) or node.target is operator.getitem
            if not known_or_part and not conversion.folds(node):
                unknown.setdefault(str(node.target), _place(node))
        elif node.target is LEAF:
            source, name = node.args
            x = conversion.value(source)
            conversion.name(
                node, *layer_nodes(layers[name], name, x, value_of(node), weights[name])
            )
        elif not conversion.folds(node):
            conversion.convert(node)
    if unknown:
        listed = ", ".join(f"{target} (in {place})" for target, place in unknown.items())
        raise ValueError(f"cannot be exported: {listed}; only --format torch can hold it")
    outputs = _outputs(program, conversion, names)
    graph = Graph(
        inputs={INPUT: _shape(program, example)},
        outputs={name: conversion.value(node) for name, node in outputs.items()},
        nodes=conversion.nodes,
        weights={name: found for name, found in weights.items() if found is not None},
        ranks={name: node.meta["val"].ndim for name, node in outputs.items()},
    )
    return Traced(model, graph, program, layers)


@contextmanager
def known(layers: Mapping[str, Layer]) -> Iterator[None]:
    """Let `LEAF` find the layers by name."""
    token = _LAYERS.set(layers)
    try:
        yield
    finally:
        _LAYERS.reset(token)


@contextmanager
def _as_leaves(layers: Mapping[str, Layer]) -> Iterator[None]:
    """Make each quantized layer one call of `LEAF`."""
    for name, layer in layers.items():
        vars(layer)["_quantized"] = lambda x, name=name: LEAF(x, name)
    try:
        yield
    finally:
        for layer in layers.values():
            del vars(layer)["_quantized"]


def _constants(program: Any, model: nn.Module) -> dict[str, Tensor | None]:
    """Return the tensors of the model by the names of their placeholders; None for the input."""
    signature = program.graph_signature
    keys = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state.update(model.named_buffers(remove_duplicate=False))
    lifted = signature.inputs_to_lifted_tensor_constants
    read = {node.name for node in program.graph.nodes if node.users}
    found: dict[str, Tensor | None] = {}
    for name, key in {**keys, **lifted}.items():
        tensor = (state[key] if name in keys else program.constants[key]).detach()
        if name in read and tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{key}: holds numbers that are not finite")
        found[name] = tensor
    (image,) = signature.user_inputs
    return {**found, image: None}


def _outputs(program: Any, conversion: Conversion, names: Sequence[str]) -> dict[str, fx.Node]:
    """Return the operations whose values are the outputs, by the outputs' names."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    results: Sequence[Any] = output.args[0]
    names = list(names) or _names(program, len(results))
    if len(names) != len(results) or len({*names, INPUT}) <= len(names):
        raise ValueError(
            f"names {names} of the outputs: the model returns {len(results)} tensors, which need "
            f"different names, none of them {INPUT!r}"
        )
    for name, node in zip(names, results, strict=True):
        if not isinstance(node, fx.Node):
            raise ValueError(f"output {name!r} of the model is {node!r}, not a tensor")
    return dict(zip(names, results, strict=True))


def _names(program: Any, count: int) -> list[str]:
    spec = program.call_spec.out_spec
    if spec.type is dict and len(spec.context) == count:
        return [str(key) for key in spec.context]
    return ["output", *(f"output_{i}" for i in range(1, count))][:count]


def _shape(program: Any, example: Tensor) -> tuple[int | None, ...]:
    """Return the input's shape, None for what may vary."""
    (name,) = program.graph_signature.user_inputs
    (image,) = (node for node in program.graph.nodes if node.name == name)
    fixed = [int(size) if is_concrete_int(size) else None for size in image.meta["val"].shape]
    if fixed[0] is not None:
        raise ValueError(
            f"the model fixes the number of images to {fixed[0]}, that of the example of shape "
            f"{tuple(example.shape)}"
        )
    symbols = [symbol for size in image.meta["val"].shape for symbol in free_symbols(size)]
    if len({*symbols}) < len(symbols):
        raise ValueError(
            f"torch took sizes of the example, {tuple(example.shape)}, for always equal or in "
            "proportion; use sizes of batch, height and width that have nothing in common"
        )
    return tuple(fixed)


def _place(node: Any) -> str:
    """Return the path of the module that an operation belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else "the model itself"
