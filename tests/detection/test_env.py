"""DETECTRON2_ENV_MODULE: Detectron2's own tools run our YAML configs as they are."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIG = str(ROOT / "configs/digits/retinanet_R18_half_w4a4_sgdt.yaml")
ENVIRONMENT = {
    **os.environ,
    "DETECTRON2_ENV_MODULE": "tr_det.detection.env",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
}


def tool(name):
    spec = importlib.util.spec_from_file_location("upstream_tools", HERE / "upstream_tools.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.tool(name))


def small(tiny, output, *overrides):
    """Return what makes the config as small as tests/tiny.py's."""
    pairs = {
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
        "MODEL.FPN.OUT_CHANNELS": 16,
        "DATASETS.TRAIN": f"('{tiny.TRAIN}',)",
        "DATASETS.TEST": f"('{tiny.VAL}',)",
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.MIN_SIZE_TEST": 64,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.TR.LOG_PERIOD": 1,
        "OUTPUT_DIR": str(output),
    }
    words = [str(word) for pair in pairs.items() for word in pair]
    return ["--config-file", CONFIG, *words, *overrides]


@pytest.mark.parametrize("name", ["train_net.py", "plain_train_net.py"])
def test_detectron2s_tool_trains_resumes_and_evaluates(name, tiny, scenes, make_config, tmp_path):
    """As in the README: from the checkpoint of a finished run in full precision."""
    full = build_model(make_config("MODEL.QUANT.ENABLED", False))
    DetectionCheckpointer(full, str(tmp_path)).save("fp", iteration=89_999)
    base = small(tiny, tmp_path)
    config, words = base[:2], base[2:]
    commands = [
        [*config, *words, "SOLVER.MAX_ITER", "2", "MODEL.WEIGHTS", f"{tmp_path}/fp.pth"],
        [*config, "--resume", *words, "SOLVER.MAX_ITER", "4"],
        [*config, "--eval-only", *words, "MODEL.WEIGHTS", f"{tmp_path}/model_final.pth"],
    ]
    done = subprocess.run(
        [sys.executable, HERE / "env_process.py", tool(name), str(scenes), json.dumps(commands)],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert output.count("Start inference on 4") == 3
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 3
    stem = "backbone.bottom_up.stem.conv1.weight"
    torch.testing.assert_close(saved["model"][stem], full.state_dict()[stem], rtol=0, atol=0.05)
    assert any("weight_quantizer" in key for key in saved["model"])
    optimizer = (
        saved["trainer"]["_trainer"]["optimizer"] if "trainer" in saved else saved["optimizer"]
    )
    scheduled = [group for group in optimizer["param_groups"] if "talr" in group]
    assert len(scheduled) == sum("weight_quantizer.scale" in key for key in saved["model"])
    # The controllers have gone on from the second iteration.
    assert {group["tr_updates"] for group in scheduled} == {4}


def test_it_works_when_ours_is_imported_first():
    """Then tr_det.detection is half imported when Detectron2 calls for it."""
    code = """
import tr_det.detection
from detectron2.config import get_cfg
import detectron2.engine.defaults, detectron2.solver, detectron2.modeling
from tr_det.detection import env
assert get_cfg().SOLVER.TR.FACTOR == 1e-3
assert detectron2.solver.build_optimizer is tr_det.detection.build_optimizer
assert detectron2.engine.defaults.build_optimizer is tr_det.detection.build_optimizer
built = detectron2.modeling.build_model
assert built is detectron2.engine.defaults.build_model is not None
env.setup_environment()
assert detectron2.modeling.build_model is built  # a second time changes nothing
cfg = get_cfg()
tr_det.detection.add_tr_det_config(cfg)  # as our own train_net.py does
assert cfg.MODEL.QUANT.WEIGHT_BITS == 4
"""
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, cwd=ROOT, check=True)


def test_without_the_variable_detectron2_is_untouched():
    from detectron2 import solver
    from detectron2.config import get_cfg

    assert "QUANT" not in get_cfg().MODEL
    assert solver.build_optimizer.__module__.startswith("detectron2.")
