"""The proof: the codes of every layer, compared between everybody who computes them.

Each backend runs images. The reference (`executor`) then goes through the network beside it: from
the backend's own float results where the order of a sum decides the last bits (full-precision
layers), and from the backend's own codes at every quantizer. So each layer is judged by itself, and
a code that differs does not make others differ.

A wrong code is *at a boundary* if the reference's value lies so near to the threshold between both
codes that the backend's own way to round can decide it (`BOUNDARY`). These are counted among the
wrong ones and shown beside them; ONNX Runtime has none, as it computes what the reference does.

Results without codes (of full-precision layers, and behind the last quantizers) must be the
reference's up to float rounding (`ROUNDING`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tr_det.export.backends import Backend, Observed
from tr_det.export.executor import execute
from tr_det.export.graph import INPUT, Graph, InputGrid, Node

BOUNDARY = {"torch": (2.0**-10, 0.0), "openvino": (0.0, 2.0**-22)}
"""Backend -> distance from a threshold at which its own rounding can decide a code: in steps, and
in shares of the number of codes.

Torch sums floats in an order of its own. OpenVINO multiplies by a rounded 1 / step where the model
divides by the step.
"""

ROUNDING = 2.0**-14
"""Largest difference of a float result from the reference's, relative to the largest result: far
above that of float32 sums in another order, far below that of a wrong weight."""


@dataclass
class Counts:
    """Codes of one layer in one backend.

    Attributes:
        codes: compared.
        wrong: that differ from the reference's.
        at_boundary: how many of the wrong ones are at a boundary.
    """

    codes: int = 0
    wrong: int = 0
    at_boundary: int = 0

    def add(self, other: Counts) -> None:
        """Count more codes of the same layer."""
        self.codes += other.codes
        self.wrong += other.wrong
        self.at_boundary += other.at_boundary


@dataclass
class BackendReport:
    """What was found of one backend.

    Attributes:
        name: of the backend.
        layers: by layer, in the network's order.
        integer_layers: how many layers it runs in integers.
        expected_integer_layers: how many it should at least; None where it claims nothing.
        changed_by_probes: whether what codes were taken from computes something else than the
            model or file.
        largest_difference: of an output from the torch model's.
        float_error: largest difference of a result in full precision from what the reference makes
            of the backend's own codes, relative to the largest result; NaN if one of them is.
        other_shapes: values whose shape is not the reference's, with both.
    """

    name: str
    layers: dict[str, Counts] = field(default_factory=dict)
    integer_layers: int = 0
    expected_integer_layers: int | None = None
    changed_by_probes: bool = False
    largest_difference: float = 0.0
    float_error: float = 0.0
    other_shapes: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> Counts:
        """Counts over all layers."""
        counts = Counts()
        for layer in self.layers.values():
            counts.add(layer)
        return counts


@dataclass
class Proof:
    """The result.

    Attributes:
        bits: layer -> bits of its weight and of its input.
        backends: in the order in which they were given.
        images: how many were run.
    """

    bits: dict[str, tuple[int, int]]
    backends: list[BackendReport]
    images: int = 0

    def failures(self) -> list[str]:
        """Return what contradicts the claim, one line each; empty where the proof holds."""
        lines = [] if self.images else ["no images: nothing was compared"]
        for backend in self.backends:
            for layer, counts in backend.layers.items():
                wrong = counts.wrong - counts.at_boundary
                if wrong:
                    lines.append(f"{backend.name}: {layer}: {wrong} of {counts.codes} codes wrong")
            expected = backend.expected_integer_layers
            if expected is not None and backend.integer_layers < expected:
                count = backend.integer_layers
                lines.append(f"{backend.name}: {count} layers run in integers, of {expected}")
            if not backend.float_error <= ROUNDING:  # NaN as well
                error = f"{backend.float_error:.1e}"
                lines.append(f"{backend.name}: float results differ by {error} from its codes'")
            lines += [f"{backend.name}: {k}: {v}" for k, v in backend.other_shapes.items()]
            if backend.changed_by_probes:
                lines.append(f"{backend.name}: the run that gave the codes has other outputs")
        return lines


def verify(graph: Graph, backends: Sequence[Backend], batches: Iterable[np.ndarray]) -> Proof:
    """Compare the codes of all backends with the reference's.

    Args:
        graph: folded.
        backends: the first one's outputs are those that others are compared with.
        batches: images, (N, C, H, W), float32.
    """
    proof = Proof(
        bits=_bits(graph),
        backends=[
            BackendReport(
                b.name,
                integer_layers=b.integer_layers,
                expected_integer_layers=b.expected_integer_layers,
            )
            for b in backends
        ],
    )
    for images in batches:
        proof.images += len(images)
        first: dict[str, np.ndarray] = {}
        for backend, report in zip(backends, proof.backends, strict=True):
            observed = backend(images)
            first = first or observed.outputs
            _compare(graph, images, observed, report)
            for name in graph.outputs:
                one, other = first[name], observed.outputs[name]
                if one.shape == other.shape:
                    difference = _largest(other - one)
                    report.largest_difference = _larger(report.largest_difference, difference)
            report.changed_by_probes = backend.changed_by_probes
    return proof


def _compare(graph: Graph, images: np.ndarray, observed: Observed, report: BackendReport) -> None:
    def watch(node: Node, arguments: list[np.ndarray], reference: np.ndarray) -> np.ndarray:
        if node.output in observed.entries:
            theirs = observed.entries[node.output]
            return _same_floats(node.output, reference, theirs, report)
        if node.op != "Quantize":
            return reference
        theirs = observed.multiples[node.output]
        if not _same_shape(f"codes of {node['layer']}", reference, theirs, report):
            return reference
        wrong = theirs != reference
        counts = Counts(wrong.size, int(wrong.sum()))
        if counts.wrong:
            fixed, relative = BOUNDARY.get(report.name, (0.0, 0.0))
            distance = fixed + relative * 2.0 ** node["grid"].bits
            x = arguments[0][wrong]
            counts.at_boundary = _at_boundary(node["grid"], x, theirs[wrong], distance)
        report.layers.setdefault(node["layer"], Counts()).add(counts)
        return theirs

    for name, own in execute(graph, {INPUT: images}, watch).items():
        _same_floats(name, own, observed.outputs[name], report)


def _same_floats(
    name: str, reference: np.ndarray, theirs: np.ndarray, report: BackendReport
) -> np.ndarray:
    """Note how much a result in full precision differs, and return the backend's."""
    if not _same_shape(name, reference, theirs, report):
        return reference
    error = _largest(theirs - reference) / (_largest(reference) or 1.0)
    report.float_error = _larger(error, report.float_error)
    return theirs


def _same_shape(
    name: str, reference: np.ndarray, theirs: np.ndarray, report: BackendReport
) -> bool:
    same = reference.shape == theirs.shape
    if not same:
        report.other_shapes[name] = f"shape {theirs.shape} instead of {reference.shape}"
    return same


def _largest(numbers: np.ndarray) -> float:
    return float(np.abs(numbers).max(initial=0))


def _larger(a: float, b: float) -> float:
    """Return the larger number, NaN if one of them is."""
    return float(np.maximum(a, b))


def _at_boundary(grid: InputGrid, x: np.ndarray, theirs: np.ndarray, most: float) -> int:
    """Return how many codes are at most so far beyond their interval.

    Args:
        grid: of the quantizer.
        x: the reference's values.
        theirs: the backend's multiples.
        most: distance from a threshold, in steps; 0: none counts.
    """
    if not most:
        return 0
    if grid.sign:
        return int((np.abs(x) <= most * grid.step).sum())
    codes = (theirs - grid.add) / grid.mul - grid.base
    distance = np.abs(grid.codes_before_rounding(x) - codes)
    return int((distance <= 0.5 + most).sum())


def _bits(graph: Graph) -> dict[str, tuple[int, int]]:
    return {
        node["layer"]: (
            graph.weights[node["layer"]].bits if node["layer"] in graph.weights else 32,
            node["grid"].bits,
        )
        for node in graph.having("Quantize")
    }
