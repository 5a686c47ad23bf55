"""Sums of two 8-bit products that do not fit 16 bits, on processors that add them so.

x86 without VNNI and AMX multiplies an unsigned byte by a signed one and adds neighbouring products
in 16 bits, saturating: 255 * 127 + 255 * 127 is cut off at 32767. Runtimes may use that
instruction. With weights of 7 bits, or of 6 where levels at half steps double them, no such sum is
too large.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tr_det.export.graph import Graph, Weights

LARGEST_SUM = 2**15 - 1
_X86_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})
_CPUINFO = Path("/proc/cpuinfo")


class Cpu(NamedTuple):
    """This machine's processor.

    Attributes:
        name: of the model.
        saturates: whether it lacks instructions that add such products in 32 bits; None if that is
            unknown.
    """

    name: str
    saturates: bool | None


def this_cpu(cpuinfo: Path = _CPUINFO) -> Cpu:
    """Return what the system says about the processor."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "flags" not in fields:  # of x86; ARM's instructions have no such sum, but differ by kernel
        return Cpu(name, None)
    return Cpu(name, not _X86_FLAGS & set(fields["flags"].split()))


def layers_at_risk(graph: Graph) -> dict[str, int]:
    """Return the layers of a folded graph with products that could saturate.

    Returns:
        Layer -> the most bits that its weights could be trained with to be safe.
    """
    grids = {node.output: node["grid"] for node in graph.having("Quantize")}
    found: dict[str, int] = {}
    for node in graph.having("IntegerConv", "IntegerLinear"):
        most = largest_safe_weight(grids[node.inputs[0]].bounds)
        weights = graph.weights[node["layer"]]
        if int(np.abs(weights.multiples).max()) > most:
            safe = (bits for bits in range(1, 9) if _largest(weights, bits) <= most)
            found[node["layer"]] = max(safe)
    return found


def largest_safe_weight(bounds: tuple[int, int]) -> int:
    """Return the largest integer of weights of which no two products are too large together.

    Args:
        bounds: smallest and largest multiple of the input, which is stored from 0 on.
    """
    low, high = bounds
    return LARGEST_SUM // (2 * (high - min(0, low)))


def _largest(weights: Weights, bits: int) -> int:
    """Return the largest weight of a grid of so many bits."""
    return 2 ** (bits - 1) if weights.mul == 1 else 2**bits - 1
