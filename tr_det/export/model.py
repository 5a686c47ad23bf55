"""Export of a quantized torch model: from the model to a file, and to the proof of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from torch import Tensor, nn

from tr_det.export.backends import Backend, RuntimeBackend, TorchBackend
from tr_det.export.fold import fold
from tr_det.export.graph import Graph
from tr_det.export.integer import IntegerWriter
from tr_det.export.metadata import Metadata
from tr_det.export.onnx_writer import OnnxWriter
from tr_det.export.qcdq import QcdqWriter
from tr_det.export.runtimes import installed
from tr_det.export.trace import Traced, trace
from tr_det.export.verify import Proof, verify
from tr_det.runtime.files import written_aside

WRITERS: dict[str, Callable[[Graph], OnnxWriter]] = {
    "qcdq": QcdqWriter,
    "integer": IntegerWriter,
}
RUNTIMES_OF = {"qcdq": ("onnxruntime", "openvino"), "integer": ("onnxruntime",)}
"""Format -> runtimes that execute it in integers."""


class Exported(NamedTuple):
    """A model in one of the ONNX formats.

    Attributes:
        traced: the torch model's record.
        writer: that has written ``model``.
        model: the file's content.
    """

    traced: Traced
    writer: OnnxWriter
    model: onnx.ModelProto

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        with written_aside(path) as aside:
            onnx.save(self.model, str(aside))


def export_onnx(
    model: nn.Module,
    example: Tensor,
    metadata: Metadata,
    form: str = "qcdq",
    names: Sequence[str] = (),
) -> Exported:
    """Return a quantized torch model as ONNX.

    Args:
        model: in evaluation; see `tr_det.export.trace.trace`.
        example: an input, at least 2 images.
        metadata: of the file.
        form: ``"qcdq"`` or ``"integer"``.
        names: of the outputs.

    Raises:
        ValueError: what cannot be represented, by name.
    """
    if form not in WRITERS:
        raise ValueError(f"form={form!r}: must be one of {', '.join(WRITERS)}")
    traced = trace(model, example, names)
    writer = WRITERS[form](fold(traced.graph))
    return Exported(traced, writer, writer.write(metadata.to_dict()))


def prove(exported: Exported, batches: Iterable[np.ndarray], runtimes: Sequence[str] = ()) -> Proof:
    """Compare the codes of the torch model, the reference and the runtimes on images.

    Args:
        exported: of `export_onnx`.
        batches: images (N, C, H, W), float32, as the model gets them.
        runtimes: names; by default those of `RUNTIMES_OF` that are installed.
    """
    writer = exported.writer
    backends: list[Backend] = [TorchBackend(exported.traced, writer.graph)]
    for runtime in runtimes or installed_runtimes(writer.format):
        backends.append(RuntimeBackend(runtime, writer, exported.model))
        if runtime == "onnxruntime":
            backends.append(RuntimeBackend(runtime, writer, exported.model, optimise=False))
    return verify(writer.graph, backends, batches)


def installed_runtimes(form: str) -> list[str]:
    """Return the runtimes for a format that can be imported here."""
    return installed(RUNTIMES_OF[form])
