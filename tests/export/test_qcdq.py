import numpy as np
import pytest
from onnx import helper

from tr_det.export.graph import Graph, InputGrid, Node, Weights
from tr_det.export.qcdq import QcdqWriter
from tr_det.export.runtimes import open_runtime

CONV = {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 1, "layer": "conv"}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_zeros_on_a_threshold_get_the_references_code(bits, runtime) -> None:
    """As half-step levels have it: rounding decides for all zeros of a feature map at once."""
    pytest.importorskip(runtime)
    rng = np.random.default_rng(0)
    weights = Weights(4, -8, 1, 0, rng.integers(-7, 8, (4, 1, 3, 3)).astype(np.int16), np.ones(4))
    for _ in range(12):
        half = np.float32(rng.uniform(0.1, 4))
        step, low = np.float32(2 * half) / np.float32(2**bits - 1), -(2 ** (bits - 1))
        grid = InputGrid(bits, low, -low - 1, mul=2, add=1, step=step, shift=-half, base=low)
        affine = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
        nodes = [
            Node("Quantize", ("images",), "codes", {"grid": grid, "layer": "conv"}),
            Node("IntegerConv", ("codes",), "y", {**CONV, **affine}),
        ]
        shape = (None, 1, None, None)
        graph = Graph({"images": shape}, {"output": "y"}, nodes, {"conv": weights}, {"output": 4})
        writer = QcdqWriter(graph)
        model = writer.write({})
        integers = writer.codes["codes"]
        model.graph.output.append(helper.make_empty_tensor_value_info(integers))
        images = np.zeros((1, 1, 4, 4), np.float32)
        images[0, 0, 0] = half * np.float32([-0.9, -0.1, 0.1, 0.9])
        found = open_runtime(model.SerializeToString(), runtime).run({"images": images})
        multiples = found[integers].astype(np.float32) - writer.types[integers][1]
        np.testing.assert_array_equal(multiples, grid.multiples(images))
