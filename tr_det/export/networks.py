"""Exported files of every format as networks that run arrays, with their time."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tr_det.export import metadata as metadata_of
from tr_det.export.metadata import METADATA_KEY, Metadata
from tr_det.export.runtimes import Arrays, Network, open_runtime


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
        with torch.no_grad():
            found = self._net(torch.from_numpy(inputs["images"]).to(self._device))
        outputs = (found,) if isinstance(found, torch.Tensor) else found
        return {name: x.cpu().numpy() for name, x in zip(self._names, outputs, strict=True)}


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
        count = len(inputs["images"])
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


def read_metadata(path: Path) -> Metadata:
    """Return what a file of any format says about itself.

    Raises:
        ValueError: no such file, one of another kind, or a package that is not installed.
    """
    return metadata_of.read(_reader(path)(path))


def open_network(
    path: Path,
    metadata: Metadata,
    fresh: Callable[[], tuple[nn.Module, nn.Module]],
    runtime: str = "onnxruntime",
    threads: int = 0,
) -> Network:
    """Load a file.

    Args:
        path: of the file.
        metadata: of `read_metadata`.
        fresh: makes the model of a packed file, and its part that takes one tensor.
        runtime: of ONNX files; others run in torch.
        threads: 0 for all cores.
    """
    if path.suffix == ".onnx":
        return open_runtime(path, runtime, threads=threads)
    if threads:
        torch.set_num_threads(threads)
    if path.suffix == ".pt2":
        from tr_det.export.simulation import read_simulation

        net, _ = read_simulation(path)
    else:
        from tr_det.export.packed import load_packed

        model, net = fresh()
        load_packed(model, path)
    return TorchNetwork(net, output_names(metadata))


def _reader(path: Path) -> Callable[[Path], dict[str, Any]]:
    readers = {".onnx": _of_onnx, ".safetensors": _of_packed, ".pt2": _of_simulation}
    if path.suffix not in readers:
        raise ValueError(f"{path}: must be a file of tools/export_model.py, {', '.join(readers)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return readers[path.suffix]


def _of_onnx(path: Path) -> dict[str, Any]:
    try:
        import onnx
    except ImportError:
        raise ValueError(f"{path}: needs onnx; pip install -e '.[export]'") from None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own
        raise ValueError(f"{path}: not an ONNX file ({error})") from None
    found = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in found:
        raise ValueError(f"{path}: has no {METADATA_KEY!r} metadata; export it again")
    values: dict[str, Any] = json.loads(found[METADATA_KEY])
    return values


def _of_packed(path: Path) -> dict[str, Any]:
    from tr_det.export.packed_file import read_packed

    return read_packed(path).metadata


def _of_simulation(path: Path) -> dict[str, Any]:
    from tr_det.export.simulation import read_simulation

    return read_simulation(path)[1]
