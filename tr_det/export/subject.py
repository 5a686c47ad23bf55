"""What is exported: a trained model with all that its file says about it, and the four formats."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tr_det import __version__
from tr_det.core import is_calibrated, quantized_layers
from tr_det.core.nn.config import FULL_PRECISION
from tr_det.export.metadata import FORMATS, Metadata
from tr_det.runtime.cli import require
from tr_det.runtime.files import written_aside

if TYPE_CHECKING:
    from tr_det.export.model import Exported

SUFFIXES = {"qcdq": ".onnx", "integer": ".onnx", "packed": ".safetensors", "torch": ".pt2"}
"""Format -> how the names of its files end."""
_PACKAGES = {"qcdq": ("onnx",), "integer": ("onnx",), "packed": ("safetensors",), "torch": ()}
"""Format -> packages that write it."""


class Subject(NamedTuple):
    """A trained model in evaluation, on the CPU.

    Attributes:
        model: the whole of it, which packed files hold.
        net: its part that takes one tensor; all other files hold that.
        names: of the outputs of ``net``.
        example: an input, at least 2 images, of the size of the test images: a program that torch
            records with a feature map of one pixel runs with no other, nor the reverse.
        metadata: of the file, but for the format.
        images: called with a number, yields that many test images, (1, C, H, W) as ``net`` gets
            them.
        fresh: makes ``model`` and ``net`` again, without the trained weights.
    """

    model: nn.Module
    net: nn.Module
    names: tuple[str, ...]
    example: Tensor
    metadata: Metadata
    images: Callable[[int], Iterator[Tensor]]
    fresh: Callable[[], tuple[nn.Module, nn.Module]]


def check_output(form: str, path: Path) -> None:
    """Raise ValueError for a format that cannot be written here, or a path that is not for it."""
    require(f"--format {form}", *_PACKAGES[form], extra="export")
    suffix = SUFFIXES[form]
    if path.suffix != suffix:
        raise ValueError(f"--output={path}: must end in {suffix} for --format {form}")
    if path.is_dir():
        raise ValueError(f"--output={path}: must be a file")


def write(subject: Subject, form: str, path: Path) -> Exported | None:
    """Write a file, and for a detector in ONNX the graph of its decoding beside it.

    Args:
        subject: what to export.
        form: one of `FORMATS`.
        path: of the file to write or replace.

    Returns:
        What was written, of the formats of ONNX.

    Raises:
        ValueError: what cannot be represented, by name; nothing is written then.
    """
    assert form in FORMATS
    versions = {"tr_det": __version__, "torch": torch.__version__}
    versions["python"] = platform.python_version()
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES[form]}
    layers = tuple(map(_bits_of, quantized_layers(subject.net)))
    metadata = replace(subject.metadata, format=form, versions=versions, layers=layers)
    if form == "packed":
        from tr_det.export.packed import write_packed

        write_packed(subject.model, path, metadata.to_dict())
        return None
    if form == "torch":
        from tr_det.export.simulation import write_simulation

        write_simulation(subject.net, subject.example, path, metadata.to_dict())
        return None
    return _write_onnx(subject, metadata, path)


def decode_path(path: Path) -> Path:
    """Return where the decoding of a detector's file is written."""
    return path.with_suffix(".decode.onnx")


def _write_onnx(subject: Subject, metadata: Metadata, path: Path) -> Exported:
    import onnx

    from tr_det.export.decode_graph import decode_graph
    from tr_det.export.model import export_onnx

    exported = export_onnx(subject.net, subject.example, metadata, metadata.format, subject.names)
    decoding = None if metadata.detector is None else decode_graph(metadata)
    exported.save(path)
    if decoding is not None:
        with written_aside(decode_path(path)) as aside:
            onnx.save(decoding, str(aside))
    return exported


def checkpoint_entry(path: str | Path) -> dict[str, str]:
    """Return a checkpoint's name and hash, for the metadata."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"file": Path(path).name, "sha256": digest.hexdigest()}


def require_quantized(net: nn.Module, key: str) -> None:
    """Raise ValueError unless a model is quantized; ``key`` of the config decides that."""
    if not any(quantized_layers(net)):
        raise ValueError(f"{key}: the model is not quantized; there is nothing to export")


def require_scales(net: nn.Module, checkpoint: str) -> None:
    """Raise ValueError unless a checkpoint has given a model all its scales."""
    if not is_calibrated(net):
        raise ValueError(
            f"{checkpoint}: has no scales of quantizers; train the quantized model first"
        )


def require_checkpoint(path: str, place: str) -> None:
    """Raise ValueError if there is no checkpoint; ``place`` says where one was looked for."""
    if not path:
        raise ValueError(f"{place}: names no checkpoint; name one by --checkpoint")
    if not Path(path).is_file():
        raise ValueError(f"{place}: the checkpoint {path} does not exist")


def _bits_of(named: tuple[str, Any]) -> dict[str, Any]:
    name, layer = named
    quantizers = {"weight_bits": layer.weight_quantizer, "input_bits": layer.input_quantizer}
    bits = {k: FULL_PRECISION if q is None else q.bits for k, q in quantizers.items()}
    return {"name": name, **bits}
