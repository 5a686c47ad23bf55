"""The proof: the codes of every layer, compared between everybody who computes them.

Each backend runs images. The reference (`executor`) then goes through the network beside it: from
the backend's own float results where the order of a sum decides the last bits (full-precision
layers), and from the backend's own codes at every quantizer. So each layer is judged by itself, and
a code that differs does not make others differ.

A wrong code is *at a boundary* if the reference's value lies so near to the threshold between both
codes that a rounding error of the backend's float operations can decide it. These are counted among
the wrong ones and shown beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tr_det.export.backends import Backend
from tr_det.export.executor import execute
from tr_det.export.graph import Graph, InputGrid, Node

BOUNDARY = 2.0**-10
"""Distance from a threshold, in steps: some hundred float32 roundings of an 8-bit code."""

EXACT_BITS = 4
"""Up to which OpenVINO's own rounding is expected to give the same codes."""


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
        changed_by_probes: whether asking for codes changed what it computes.
        largest_difference: of an output from the torch model's.
    """

    name: str
    layers: dict[str, Counts] = field(default_factory=dict)
    integer_layers: int = 0
    expected_integer_layers: int | None = None
    changed_by_probes: bool = False
    largest_difference: float = 0.0

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
        lines = []
        for backend in self.backends:
            for layer, counts in backend.layers.items():
                wrong = counts.wrong
                if self._may_differ_at_boundaries(backend.name, layer):
                    wrong -= counts.at_boundary
                if wrong:
                    lines.append(f"{backend.name}: {layer}: {wrong} of {counts.codes} codes wrong")
            expected = backend.expected_integer_layers
            if expected is not None and backend.integer_layers < expected:
                count = backend.integer_layers
                lines.append(f"{backend.name}: {count} layers run in integers, of {expected}")
            if backend.changed_by_probes:
                lines.append(f"{backend.name}: computes something else when codes are asked for")
        return lines

    def _may_differ_at_boundaries(self, backend: str, layer: str) -> bool:
        """Torch fuses a batch norm's operations; OpenVINO's 8-bit rounding is its own."""
        return backend == "torch" or (
            backend.startswith("openvino") and max(self.bits[layer]) > EXACT_BITS
        )


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
            _compare(graph, images, observed.multiples, observed.entries, report)
            differences = (np.abs(first[k] - observed.outputs[k]).max(initial=0) for k in first)
            report.largest_difference = max(report.largest_difference, *map(float, differences))
            report.changed_by_probes = backend.changed_by_probes
    return proof


def _compare(
    graph: Graph,
    images: np.ndarray,
    multiples: dict[str, np.ndarray],
    entries: dict[str, np.ndarray],
    report: BackendReport,
) -> None:
    def watch(node: Node, x: np.ndarray, reference: np.ndarray) -> np.ndarray:
        theirs = multiples[node.output]
        wrong = theirs != reference
        counts = Counts(wrong.size, int(wrong.sum()))
        if counts.wrong:
            counts.at_boundary = _at_boundary(node["grid"], x[wrong], theirs[wrong])
        report.layers.setdefault(node["layer"], Counts()).add(counts)
        return theirs

    execute(graph, {"images": images}, given=entries, watch=watch)


def _at_boundary(grid: InputGrid, x: np.ndarray, theirs: np.ndarray) -> int:
    """Return how many codes are at most a rounding error away from those of x.

    Args:
        grid: of the quantizer.
        x: the reference's values.
        theirs: the backend's multiples.
    """
    if grid.sign:
        return int((np.abs(x) <= BOUNDARY * grid.step).sum())
    codes = (theirs - grid.add) / grid.mul - grid.base
    distance = np.abs(grid.codes_before_rounding(x) - codes)
    return int((distance <= 0.5 + BOUNDARY).sum())


def _bits(graph: Graph) -> dict[str, tuple[int, int]]:
    return {
        node["layer"]: (
            graph.weights[node["layer"]].bits if node["layer"] in graph.weights else 32,
            node["grid"].bits,
        )
        for node in graph.having("Quantize")
    }
