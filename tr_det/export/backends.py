"""Who computes codes that the proof compares: the torch model and the runtimes."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from tr_det.export.conversion import value_of
from tr_det.export.executor import INEXACT
from tr_det.export.graph import INPUT, Graph
from tr_det.export.onnx_writer import OnnxWriter
from tr_det.export.runtimes import Arrays, OnnxRuntime, OpenVino, Runtime
from tr_det.export.trace import LEAF, Traced, known

_CHAINED = frozenset({"Affine", "Relu", "Clip", "PRelu", "MaxPool", *INEXACT})
_INTEGER_NODES = frozenset({"QLinearConv", "ConvInteger", "MatMulInteger", "QLinearMatMul"})
_INTEGER_NODES |= {"MatMulIntegerToFloat", "QGemm"}


class Observed(NamedTuple):
    """What a backend computed from images.

    Attributes:
        multiples: by the output of the `Quantize`, float32.
        entries: float values that depend on the order of a sum, by name (see `entries`).
        outputs: of the network.
    """

    multiples: Arrays
    entries: Arrays
    outputs: Arrays


class Backend(Protocol):
    """A computer of codes.

    Attributes:
        name: for tables.
        integer_layers: how many convolutions and matrix products it runs in integers.
        expected_integer_layers: how many it should at least; None where it claims nothing.
        changed_by_probes: whether what codes were taken from computes something else than what was
            asked about.
    """

    name: str
    integer_layers: int
    expected_integer_layers: int | None
    changed_by_probes: bool

    def __call__(self, images: np.ndarray) -> Observed:
        """Run; images (N, C, H, W), float32."""
        ...


def entries(graph: Graph) -> list[str]:
    """Return the values from which on everything up to the next one is determined to the bit.

    Behind an operation of `INEXACT`, that is what a chain of operations on it alone ends with, so
    that a runtime may fuse the chain.
    """
    consumers = graph.consumers()
    found: dict[str, None] = {}
    for node in graph.having(*INEXACT):
        value = node.output
        while True:
            after = graph.only_consumer(consumers, value)
            if after is None or after.op not in _CHAINED or len(after.inputs) > 1:
                break
            value = after.output
        if consumers.get(value):
            found[value] = None
    return list(found)


class TorchBackend:
    """The model as it was trained, operation by operation as torch recorded it.

    What the record computes is compared with the model itself: a record has only one branch of an
    ``if`` on the images' size.

    Args:
        traced: of `tr_det.export.trace.trace`.
        graph: the folded graph.
    """

    name = "torch"
    integer_layers = 0
    expected_integer_layers: int | None = None

    def __init__(self, traced: Traced, graph: Graph) -> None:
        self._traced, self._graph = traced, graph
        self.changed_by_probes = False
        self._entries = entries(graph)

    def __call__(self, images: np.ndarray) -> Observed:
        """Run."""
        module = _runnable(self._traced.program)
        recorder = _Recorder(module, self._traced, set(self._entries))
        with torch.no_grad(), known(self._traced.layers):  # either may change its input
            try:
                results = tree_leaves(recorder.run(torch.from_numpy(images.copy())))
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"images of shape {images.shape}: what torch recorded of the model cannot run "
                    f"them ({reason})"
                ) from None
            expected = tree_leaves(self._traced.model(torch.from_numpy(images.copy())))
        if not all(map(torch.equal, results, expected)):
            self.changed_by_probes = True
        made = {node.output: node for node in self._graph.nodes}
        for node in self._graph.having("Quantize"):
            source = made.get(node.inputs[0])
            if source is not None and source.op == "Slice" and source.output.endswith(".sampled"):
                rows, columns = source["steps"]
                codes = recorder.multiples[node.output]
                recorder.multiples[node.output] = codes[:, :, ::rows, ::columns]
        outputs = {n: t.numpy() for n, t in zip(self._graph.outputs, results, strict=True)}
        return Observed(recorder.multiples, recorder.entries, outputs)


def _runnable(program: Any) -> fx.GraphModule:
    """Return a record that takes images of other sizes than the example, where torch lets it."""
    free = "check_guards" in inspect.signature(program.module).parameters
    module: fx.GraphModule = program.module(check_guards=False) if free else program.module()
    return module


class _Recorder(fx.Interpreter):
    """Runs the recorded program with the real layers and keeps codes and entries."""

    def __init__(self, module: fx.GraphModule, traced: Traced, wanted: set[str]) -> None:
        super().__init__(module)
        self._layers, self._wanted = traced.layers, wanted
        self.multiples: Arrays = {}
        self.entries: Arrays = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation, and keep what is wanted of it."""
        if n.target is LEAF:
            (x, name), _ = self.fetch_args_kwargs_from_env(n)
            self._observe(f"{value_of(n)}.codes", self._layers[name].input_quantizer, x)
        result = super().run_node(n)
        if value_of(n) in self._wanted:
            self.entries[value_of(n)] = result.numpy().copy()  # a later operation may be in place
        return result

    def _observe(self, name: str, quantizer: Any, x: Tensor) -> None:
        if quantizer is not None:
            grid = quantizer.grid()
            codes = quantizer.codes(x).numpy().astype(np.float32)
            self.multiples[name] = codes * np.float32(grid.mul) + np.float32(grid.add)


class RuntimeBackend:
    """An exported file in a runtime.

    Codes and entries become outputs of a copy of the file. What the copy computes is compared with
    the file itself, as outputs could keep a runtime from fusing operations.

    Args:
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        writer: that has written the model.
        model: the file's content.
        optimise: whether ONNX Runtime may rewrite the graph.
    """

    def __init__(
        self, runtime: str, writer: OnnxWriter, model: onnx.ModelProto, optimise: bool = True
    ) -> None:
        self.name = runtime if optimise else f"{runtime}, not optimised"
        self._writer, self._entries = writer, entries(writer.graph)
        probed = onnx.ModelProto()
        probed.CopyFrom(model)
        for name in dict.fromkeys((*writer.codes.values(), *self._entries)):
            probed.graph.output.append(helper.make_empty_tensor_value_info(name))
        self._plain, count = _opened(runtime, model, optimise)
        self._probed, probed_count = _opened(runtime, probed, optimise)
        self.integer_layers = count
        self.expected_integer_layers = writer.integer_layers(runtime) if optimise else None
        self.changed_by_probes = count != probed_count

    def __call__(self, images: np.ndarray) -> Observed:
        """Run."""
        found = self._probed.run({INPUT: images})
        multiples = {}
        for value, name in self._writer.codes.items():
            _, zero = self._writer.types[name]
            multiples[value] = found[name].astype(np.float32) - np.float32(zero)
        outputs = self._plain.run({INPUT: images})
        for name in self._writer.graph.outputs:
            if not np.array_equal(outputs[name], found[name]):
                self.changed_by_probes = True
        return Observed(multiples, {name: found[name] for name in self._entries}, outputs)


def _opened(runtime: str, model: onnx.ModelProto, optimise: bool) -> tuple[Runtime, int]:
    """Return a loaded model and how many of its layers run in integers."""
    content = model.SerializeToString()
    if runtime == "openvino":
        opened = OpenVino(content)
        return opened, opened.integer_layers()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimised.onnx"
        loaded = OnnxRuntime(content, optimise=optimise, optimised_to=file)
        nodes = onnx.load(str(file), load_external_data=False).graph.node
    return loaded, sum(node.op_type in _INTEGER_NODES for node in nodes)
