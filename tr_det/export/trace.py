"""From a quantized torch model to the intermediate form.

``torch.export`` records the model with its quantized layers as leaves: while it does, each of them
is one call of an operator that carries the layer's name. What it records are ATen operations at the
level of ``conv2d`` and ``batch_norm``; `tr_det.export.aten` says what each of them becomes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

import tr_det.export.aten
import tr_det.export.aten_shapes  # noqa: F401  registers converters
from tr_det.core import quantized_layers
from tr_det.export.conversion import CONVERTERS, Conversion
from tr_det.export.graph import Graph
from tr_det.export.layers import Layer, layer_nodes, weights_of

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
        graph: the intermediate form, not yet folded.
        program: torch's own record; values have the same names.
        layers: the quantized layers by name.
    """

    graph: Graph
    program: Any
    layers: dict[str, Layer]


def trace(model: nn.Module, example: Tensor, names: Sequence[str] = ()) -> Traced:
    """Return the intermediate form of a quantized model in evaluation.

    Args:
        model: takes one tensor; returns a tensor, or a tuple, list or dict of tensors.
        example: an input, floating point; batch, height and width may differ later, at least 2.
        names: of the outputs; by default the dict's keys, or output, output_1, ...

    Raises:
        ValueError: what cannot be represented, by name: operations, quantizers, uncalibrated
            layers; or a model without quantized layers.
    """
    layers = dict(quantized_layers(model))
    if not layers:
        raise ValueError("the model has no quantized layers: there is nothing to export")
    if model.training:
        raise ValueError("the model is in training mode: call eval() before the export")
    weights = {name: weights_of(layer, name) for name, layer in layers.items()}
    program = _recorded(model, example, layers)
    conversion = Conversion(_constants(program, model))
    unknown: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or isinstance(node.meta.get("val"), torch.SymInt):
            continue  # sizes are looked at where they are used
        if node.target is LEAF:
            source, name = node.args
            x = conversion.value(source)
            conversion.add(*layer_nodes(layers[name], name, x, node.name, weights[name]))
        elif conversion.folds(node):
            continue
        elif node.target in CONVERTERS:
            CONVERTERS[node.target](conversion, node)
        else:
            unknown.setdefault(str(node.target), _place(node))
    if unknown:
        listed = ", ".join(f"{target} (in {place})" for target, place in unknown.items())
        raise ValueError(f"cannot be exported: {listed}; only --format torch can hold it")
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    results: Any = output.args[0]
    names = list(names) or _names(program, len(results))
    shape = tuple(None if dim in (0, 2, 3) else size for dim, size in enumerate(example.shape))
    graph = Graph(
        inputs={"images": shape},
        outputs=dict(zip(names, map(conversion.value, results), strict=True)),
        nodes=conversion.nodes,
        weights={name: found for name, found in weights.items() if found is not None},
        ranks={name: arg.meta["val"].ndim for name, arg in zip(names, results, strict=True)},
    )
    return Traced(graph, program, layers)


def _recorded(model: nn.Module, example: Tensor, layers: Mapping[str, Layer]) -> Any:
    # Sizes are symbols where the model allows it, so that a size it asks for is seen as one.
    dynamic = {dim: Dim.AUTO for dim in range(example.ndim) if dim != 1}
    with known(layers), _as_leaves(layers), torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)


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
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state.update(model.named_buffers(remove_duplicate=False))
    found: dict[str, Tensor | None] = {n: state[key].detach() for n, key in tensors.items()}
    for name, key in signature.inputs_to_lifted_tensor_constants.items():
        found[name] = program.constants[key].detach()
    (image,) = signature.user_inputs
    return {**found, image: None}


def _names(program: Any, count: int) -> list[str]:
    spec = program.call_spec.out_spec
    if spec.type is dict and len(spec.context) == count:
        return [str(key) for key in spec.context]
    return ["output", *(f"output_{i}" for i in range(1, count))][:count]


def _place(node: Any) -> str:
    """Return the path of the module that an operation belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else "the model itself"
