import subprocess
import sys

import pytest

AFTER_TWO_FILES = """
import gc, os, signal
from onnx import TensorProto, helper
from tr_det.export.runtimes import open_runtime

x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8]) for n in ("images", "y"))
graph = helper.make_graph([helper.make_node("Relu", ["images"], ["y"])], "relu", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
first, second = (open_runtime(model.SerializeToString(), "openvino") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_can_be_handled_after_files_were_closed() -> None:
    pytest.importorskip("openvino")
    ran = subprocess.run([sys.executable, "-c", AFTER_TWO_FILES], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.split()) == (0, ["handled"]), ran.stderr
