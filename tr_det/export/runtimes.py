"""The runtimes that execute an exported ONNX file, behind one interface.

Neither torch nor Detectron2 is needed here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tr_det.export.metadata import METADATA_KEY

Arrays = dict[str, np.ndarray]
_OPENVINO_LAYERS = ("Convolution", "FullyConnected", "MatMul")


class Network(Protocol):
    """What runs a network, in whatever library."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the outputs by name for ``{"images": (N, C, H, W) float32}``."""
        ...


class Runtime(Protocol):
    """A loaded ONNX file.

    Attributes:
        name: of the runtime.
        metadata: what the file says about itself; {} where it says nothing.
    """

    name: str
    metadata: dict[str, Any]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Return the outputs by name."""
        ...


class OnnxRuntime:
    """ONNX Runtime on the CPU.

    Args:
        model: path of a file, or its bytes.
        threads: of one operator; 0 for all cores.
        optimise: whether the runtime may rewrite the graph.
        optimised_to: where to write the rewritten graph.
    """

    name = "onnxruntime"

    def __init__(
        self,
        model: str | Path | bytes,
        threads: int = 0,
        optimise: bool = True,
        optimised_to: str | Path = "",
    ) -> None:
        ort = _imported("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        )
        if optimised_to:
            options.optimized_model_filepath = str(optimised_to)
        source = model if isinstance(model, bytes) else str(model)
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        properties = self._session.get_modelmeta().custom_metadata_map
        self.metadata = json.loads(properties.get(METADATA_KEY, "{}"))

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Return the outputs by name."""
        found = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, found, strict=True))


@functools.cache
def _openvino_core() -> Any:
    """Return the process's one OpenVINO core, which is never destroyed.

    Each core gives its thread a stack for signals, and restores the one before when it goes. Of two
    cores, the second would so restore the stack of the first, which is gone: the next signal, such
    as that of a data loader's worker that ends, is a segmentation fault.
    """
    return _imported("openvino").Core()


class OpenVino:
    """OpenVINO on the CPU, with float32 where it is not integer: bfloat16 would change codes.

    Args:
        model: path of a file, or its bytes.
        threads: 0 for all cores.
    """

    name = "openvino"

    def __init__(self, model: str | Path | bytes, threads: int = 0) -> None:
        core = _openvino_core()
        self._model = core.read_model(model if isinstance(model, bytes) else str(model))
        config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        self._compiled = core.compile_model(self._model, "CPU", config)
        self._request = self._compiled.create_infer_request()
        self._names = [port.get_names() for port in self._compiled.outputs]  # with aliases
        info = self._model.get_rt_info()
        text = info["framework"][METADATA_KEY].value if "framework" in info else "{}"
        self.metadata = json.loads(text)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Return the outputs by name."""
        found = self._request.infer(dict(inputs))
        arrays = [found[i].copy() for i in range(len(self._names))]
        return {n: array for names, array in zip(self._names, arrays, strict=True) for n in names}

    def integer_layers(self) -> int:
        """Return how many convolutions and matrix products run in integers."""
        count = 0
        for operation in self._compiled.get_runtime_model().get_ordered_ops():
            info = operation.get_rt_info()
            kind, precision = (info[k].astype(str) for k in ("layerType", "runtimePrecision"))
            count += kind in _OPENVINO_LAYERS and precision in ("u8", "i8")
        return count


RUNTIMES: dict[str, Callable[..., Runtime]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def installed(names: Iterable[str] = tuple(RUNTIMES)) -> list[str]:
    """Return which of the runtimes can be imported here."""
    return [name for name in names if importlib.util.find_spec(name)]


def open_runtime(model: str | Path | bytes, name: str = "onnxruntime", **options: Any) -> Runtime:
    """Load a model.

    Args:
        model: path of an ONNX file, or its bytes.
        name: ``"onnxruntime"`` or ``"openvino"``.
        **options: of `OnnxRuntime` or `OpenVino`.

    Raises:
        ValueError: an unknown runtime, one that is not installed, or no such file.
    """
    if name not in RUNTIMES:
        raise ValueError(f"runtime={name!r}: must be one of {sorted(RUNTIMES)}")
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise ValueError(f"{model}: no such file")
    return RUNTIMES[name](model, **options)


def _imported(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise ValueError(f"runtime={name!r}: not installed; pip install {name}") from None
