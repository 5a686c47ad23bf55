"""Every detection config builds its model and optimizer, without storage."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from tr_det.detection import add_tr_det_config, build_optimizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LEAVES = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base") and path.relative_to(CONFIGS).parts[0] != "classification"
)


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_builds_what_its_name_says(path):
    cfg = get_cfg()
    add_tr_det_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
        optimizer = build_optimizer(cfg, model)
    if "_w4a4" in path.stem:
        assert {(x.weight_bits, x.act_bits) for x in model.quant_report.quantized} == {(4, 4)}
    else:
        assert "_fp" in path.stem
        assert model.quant_report is None
    scheduled = any("talr" in group for group in optimizer.param_groups)
    assert scheduled == path.stem.endswith("_sgdt")
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"


def test_output_folders_are_all_different():
    folders = []
    for path in LEAVES:
        cfg = get_cfg()
        add_tr_det_config(cfg)
        cfg.merge_from_file(str(path))
        folders.append(cfg.OUTPUT_DIR)
    assert len(set(folders)) == len(folders) > 5
