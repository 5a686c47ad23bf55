"""The proof of an export as text and as JSON."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from tr_det import __version__
from tr_det.export.saturation import Cpu
from tr_det.export.verify import BackendReport, Counts, Proof

NOTICEABLE = 1e-3
"""Difference of outputs that rounding alone does not make; a code of a float's last bit does."""
_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "safetensors")


def proof_table(
    proof: Proof, risks: Mapping[str, int], remedy: str, cpu: Cpu, all_layers: bool = False
) -> str:
    """Return the proof as text.

    Args:
        proof: of `tr_det.export.verify.verify`.
        risks: of `layers_at_risk`.
        remedy: what to train with, so that there are none.
        cpu: of this machine.
        all_layers: list layers without a wrong code, too.
    """
    columns = proof.backends
    wrong = [n for n in proof.bits if any(_counts(b, n).wrong for b in columns)]
    listed = list(proof.bits) if all_layers else wrong
    rows = [("layer", "bits", "codes", *(backend.name for backend in columns))]
    for name in listed:
        bits = "W{}A{}".format(*proof.bits[name])
        codes = max(_counts(backend, name).codes for backend in columns)
        cells = (_cell(_counts(backend, name)) for backend in columns)
        rows.append((name, bits, f"{codes:,}", *cells))
    totals = [backend.total for backend in columns]
    count = f"all {len(proof.bits)} layers"
    rows.append((count, "", f"{max(t.codes for t in totals):,}", *map(_cell, totals)))
    rows.append(("run in integers", "", "", *map(_integers, columns)))
    rows.append(("float results", "", "", *(f"{b.float_error:.1e}" for b in columns)))
    rows.append(("largest difference", "", "", *(f"{b.largest_difference:.1e}" for b in columns)))
    images = f"{proof.images} image{'s' if proof.images != 1 else ''}"
    lines = [f"wrong codes (of them at a boundary) in {images}", *_aligned(rows)]
    if max(backend.largest_difference for backend in columns) > NOTICEABLE:
        lines.append(
            "difference: of outputs from torch's; layers in full precision add in another order, "
            "which decides a code now and then"
        )
    return "\n".join([*lines, *saturation_lines(risks, remedy, cpu), *verdict(proof.failures())])


def verdict(failures: list[str]) -> list[str]:
    """Return whether a proof holds, and what contradicts it."""
    return ["proof FAILS:", *(f"  {line}" for line in failures)] if failures else ["proof holds"]


def saturation_lines(risks: Mapping[str, int], remedy: str, cpu: Cpu) -> list[str]:
    """Return what 8-bit products mean on this processor, and how to avoid that."""
    if not risks:
        return ["saturation of 16-bit sums: impossible, all products are small enough"]
    shown = ", ".join(list(risks)[:4]) + (", ..." if len(risks) > 4 else "")
    where = {
        True: f"this CPU ({cpu.name}) has neither VNNI nor AMX: codes can be wrong",
        False: f"not on this CPU ({cpu.name}), but on x86 without VNNI and AMX",
        None: f"unknown for this CPU ({cpu.name}); possible on x86 without VNNI and AMX",
    }[cpu.saturates]
    return [
        f"saturation of 16-bit sums: {where}; {len(risks)} layers ({shown})",
        f"safe on all CPUs, if trained with {remedy}",
    ]


def proof_record(proof: Proof, risks: Mapping[str, int], remedy: str, cpu: Cpu) -> dict[str, Any]:
    """Return the proof for JSON; arguments as for `proof_table`."""
    backends = [
        {
            "name": backend.name,
            "integer_layers": backend.integer_layers,
            "expected_integer_layers": backend.expected_integer_layers,
            "changed_by_probes": backend.changed_by_probes,
            "largest_difference": backend.largest_difference,
            "float_error": backend.float_error,
            "other_shapes": backend.other_shapes,
            **vars(backend.total),
            "layers": {name: dict(vars(counts)) for name, counts in backend.layers.items()},
        }
        for backend in proof.backends
    ]
    return {
        **record(proof.failures(), proof.images, cpu),
        "bits": {n: {"weight": w, "input": x} for n, (w, x) in proof.bits.items()},
        "backends": backends,
        "saturation": {
            "possible_on_this_cpu": cpu.saturates,
            "layers": list(risks),
            "safe_if_trained_with": remedy,
        },
    }


def record(failures: list[str], images: int, cpu: Cpu) -> dict[str, Any]:
    """Return what is written about every proof: the verdict, and where it was made."""
    return {
        "holds": not failures,
        "failures": failures,
        "images": images,
        "cpu": cpu.name,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what takes part in an export, as far as it is installed."""
    found = {"tr_det": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _counts(backend: BackendReport, layer: str) -> Counts:
    return backend.layers.get(layer, Counts())


def _cell(counts: Counts) -> str:
    return f"{counts.wrong:,}" + (f" ({counts.at_boundary:,})" if counts.wrong else "")


def _integers(backend: BackendReport) -> str:
    if backend.expected_integer_layers is None:
        return f"{backend.integer_layers}" if backend.integer_layers else "-"
    return f"{backend.integer_layers}/{backend.expected_integer_layers}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(r, widths)))
        for r in rows
    ]
