"""Exported files of every format as networks that run arrays, with their time.

What runs an ONNX file does not load torch.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tr_det.export.graph import INPUT
from tr_det.export.metadata import METADATA_KEY, Metadata, read
from tr_det.export.runtimes import Arrays, Network, Runtime, open_runtime

if TYPE_CHECKING:
    from torch import nn

SUFFIXES = (".onnx", ".safetensors", ".pt2")
"""Of exported files."""


class TorchNetwork:
    """A torch module that takes one tensor.

    Args:
        net: in evaluation.
        names: of its outputs.
        device: where it is.
    """

    def __init__(self, net: nn.Module, names: tuple[str, ...], device: str = "cpu") -> None:
        self._net, self._names, self._device = net, names, device

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Return the outputs by name."""
        import torch

        with torch.no_grad():
            found = self._net(torch.from_numpy(inputs[INPUT]).to(self._device))
        outputs = (found,) if isinstance(found, torch.Tensor) else found
        return {name: x.cpu().numpy() for name, x in zip(self._names, outputs, strict=True)}


class RecordedNetwork(TorchNetwork):
    """A program of ``torch.export``, which takes only sizes like those that it was recorded for."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Return the outputs by name.

        Raises:
            ValueError: images of a size that was not recorded.
        """
        try:
            return super().run(inputs)
        except AssertionError as error:  # of a guard in the program
            size = " x ".join(map(str, inputs[INPUT].shape[2:]))
            raise ValueError(
                f"input of {size} px (padded): not of the sizes that the network was recorded for "
                f"({error}); other formats take all sizes"
            ) from None


class Timed:
    """A network with the time of its calls.

    Attributes:
        images: how many were run.
        seconds: of one image in each call, wall time.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self.images = 0
        self.seconds: list[float] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the outputs by name."""
        began = time.perf_counter()
        found = self._network.run(inputs)
        count = len(inputs[INPUT])
        self.seconds.append((time.perf_counter() - began) / count)
        self.images += count
        return found

    @property
    def milliseconds(self) -> float:
        """Median time of an image, ms."""
        return 1e3 * statistics.median(self.seconds) if self.seconds else 0.0


def output_names(metadata: Metadata) -> tuple[str, ...]:
    """Return the names of the outputs of an exported detector or classifier."""
    return ("logits",) if metadata.detector is None else metadata.detector.outputs


def open_onnx(
    model: str | Path | bytes, runtime: str = "onnxruntime", threads: int = 0
) -> tuple[Runtime, Metadata]:
    """Load an ONNX file of tools/export_model.py.

    Args:
        model: path of the file, or its bytes.
        runtime: "onnxruntime" or "openvino".
        threads: 0 for all cores.

    Raises:
        ValueError: no such file, one that the runtime cannot read, one without metadata or with
            metadata that are not allowed, or a runtime that is not installed.
    """
    name = "model" if isinstance(model, bytes) else str(model)
    try:
        opened = open_runtime(model, runtime, threads=threads)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: metadata: is not JSON ({error})") from None
    except ValueError:
        raise
    except Exception as error:  # each runtime has its own for files that it cannot read
        raise ValueError(f"{name}: {runtime} cannot read it ({error})") from None
    if not opened.metadata:
        raise ValueError(f"{name}: has no {METADATA_KEY!r} metadata; export it again")
    return opened, _read(name, opened.metadata)


def open_file(
    path: Path,
    fresh: Callable[[Metadata], tuple[nn.Module, nn.Module]],
    runtime: str = "onnxruntime",
    threads: int = 0,
) -> tuple[Network, Metadata]:
    """Load a file of any format; return what runs it, and what it says about itself.

    Args:
        path: of the file.
        fresh: makes the model of a packed file, and its part that takes one tensor.
        runtime: of ONNX files; others run in torch.
        threads: 0 for all cores.

    Raises:
        ValueError: no such file, one of another kind, or a package that is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: must be a file of tools/export_model.py, {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".onnx":
        return open_onnx(path, runtime, threads)
    import torch

    if threads:
        torch.set_num_threads(threads)
    if path.suffix == ".pt2":
        from tr_det.export.simulation import read_simulation

        net, values = read_simulation(path)
        metadata = _read(str(path), values)
        return RecordedNetwork(net, output_names(metadata)), metadata
    from tr_det.export.packed import load_packed, read_packed

    metadata = _read(str(path), read_packed(path).metadata)
    model, net = fresh(metadata)
    load_packed(model, path)
    return TorchNetwork(net, output_names(metadata)), metadata


def _read(name: str, values: dict[str, Any]) -> Metadata:
    try:
        return read(values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
