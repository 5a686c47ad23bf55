"""Codes of exported detectors that differ from the reference's, by quantizer and runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.exported import calibrated_detector, missing
from benchmarks.measure import Settings

__all__ = ["DEVICE", "TITLE", "missing", "rows"]

TITLE = "Wrong codes of exported detectors, one image of 320 px; in parentheses: at a boundary"
DEVICE = "cpu"
NETWORKS = ("retinanet-r18-half", "retinanet-r18")
SIDE = 320
"""Of the images, px; 64 for a quick try."""
_ENDS = ("*stem.conv1", "head.cls_score", "head.bbox_pred")
QUANTIZERS: dict[str, dict[str, Any]] = {
    "W4A4": {},
    "W3A3": {"WEIGHT_BITS": 3, "ACT_BITS": 3},
    "W2A2": {"WEIGHT_BITS": 2, "ACT_BITS": 2},
    "W4A4, first and last layers W8A8": {
        "SKIP": [],
        "RULES": [f"{layer} weight_bits=8 act_bits=8" for layer in _ENDS],
    },
    "LSQ, weights per channel, W4A4": {
        "WEIGHT_QUANTIZER": "lsq",
        "ACT_QUANTIZER": "lsq",
        "WEIGHT_OPTIONS": ["per_channel=True"],
    },
    "W8A8": {"WEIGHT_BITS": 8, "ACT_BITS": 8},
}
"""Row -> keys of MODEL.QUANT that differ from the config's."""


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Return one row per network and quantizer."""
    if missing():
        return []
    cases = [(network, name) for network in NETWORKS for name in QUANTIZERS]
    return [
        row for case in (cases[:1] if settings.tiny else cases) for row in _row(*case, settings)
    ]


def _row(network: str, name: str, settings: Settings) -> Iterator[dict[str, Any]]:
    from tr_det.export.metadata import InputSpec, Metadata
    from tr_det.export.model import WRITERS, export_onnx, prove

    keys = QUANTIZERS[name].items()
    options = [part for key, value in keys for part in (f"MODEL.QUANT.{key}", value)]
    net, images = calibrated_detector(
        network, 64 if settings.tiny else SIDE, settings.tiny, options
    )
    spec = InputSpec(3, "BGR", 1.0, (0.0,) * 3, (1.0,) * 3, 1, None)
    row: dict[str, Any] = {"network": network, "quantizer": name}
    for form in WRITERS:
        metadata = Metadata(form, "features", spec)
        exported = export_onnx(net, images, metadata, form, net.output_names)
        for backend in prove(exported, [images[:1].numpy()]).backends:
            found = backend.total
            row["codes"] = found.codes
            label = backend.name if backend.name == "torch" else f"{backend.name} {form}"
            row[label] = f"{found.wrong} ({found.at_boundary})" if found.wrong else 0
            if backend.expected_integer_layers is not None:
                row[f"in integers, {label}"] = backend.integer_layers
    yield row
