"""Sums of two 8-bit products that do not fit 16 bits, on processors that add them so.

x86 without VNNI and AMX multiplies an unsigned byte by a signed one and adds neighbouring products
in 16 bits, saturating: 255 * 127 + 255 * 127 is cut off at 32767. Runtimes may use that
instruction. With weights of 7 bits no such sum is too large.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tr_det.export.fit import fits
from tr_det.export.graph import Graph

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


def layers_at_risk(graph: Graph) -> list[str]:
    """Return the layers of a folded graph with products that could saturate, as they are stored."""
    grids = {node.output: node["grid"] for node in graph.having("Quantize")}
    factors = {fit.layer.output: fit.factor for fit in fits(graph).values()}
    found: dict[str, None] = {}
    for node in graph.having("IntegerConv", "IntegerLinear"):
        low, high = grids[node.inputs[0]].bounds
        weights = np.abs(graph.weights[node["layer"]].multiples.astype(np.int64))
        by_channel = weights.reshape(len(weights), -1).max(axis=1)
        largest = int((by_channel * factors.get(node.output, 1)).max())
        if 2 * (high - min(0, low)) * largest > LARGEST_SUM:  # inputs are stored from 0 on
            found[node["layer"]] = None
    return list(found)
