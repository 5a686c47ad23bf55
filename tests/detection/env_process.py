"""Run tools of Detectron2's one after another, in a process with DETECTRON2_ENV_MODULE.

    env_process.py FIRST DATASETS JSON

FIRST is the package that is imported first, DATASETS the folder of the tests' datasets, JSON a list
of command lines. All in one process, because importing takes longest.
"""

import importlib
import json
import runpy
import sys

first, folder, command_lines = sys.argv[1:]
importlib.import_module(first)
# In this order: tr_det, if it comes first, is half imported when Detectron2 asks for it.
import detectron2.engine.defaults  # noqa: E402
import detectron2.modeling  # noqa: E402
import detectron2.solver  # noqa: E402
import torch  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402

assert "tr_det.detection.env" in sys.modules, "Detectron2 did not import the environment module"

import tr_det.detection  # noqa: E402
from tests import tiny  # noqa: E402


def check_replaced_functions():
    """Check what stock tools find, also after another call of `setup_environment`."""
    assert detectron2.solver.build_optimizer is tr_det.detection.build_optimizer
    assert detectron2.engine.defaults.build_optimizer is tr_det.detection.build_optimizer
    built = detectron2.modeling.build_model
    tr_det.detection.env.setup_environment()
    assert built is detectron2.modeling.build_model is detectron2.engine.defaults.build_model
    cfg = get_cfg()
    assert cfg.SOLVER.TR.FACTOR == 1e-3
    tr_det.detection.add_tr_det_config(cfg)  # as our own train_net.py does
    assert cfg.MODEL.QUANT.WEIGHT_BITS == 4


torch.set_num_threads(1)
check_replaced_functions()
tiny.register_tiny_scenes(folder)
for sys.argv in json.loads(command_lines):
    runpy.run_path(sys.argv[0], run_name="__main__")
