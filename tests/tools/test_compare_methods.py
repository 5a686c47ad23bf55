"""Every contestant is a config that builds; results become a table."""

import json
from types import SimpleNamespace

import compare_methods
import pytest
from detectron2.config import get_cfg

from tr_det.core import METHODS, QUANTIZERS, quantized_layers
from tr_det.detection import QuantTrainer, add_tr_det_config
from tr_det.detection.config.checks import check_config
from tr_det.detection.config.reading import merge_file, merge_pairs

CONTESTANTS = [each for make in compare_methods.GROUPS.values() for each in make()]


@pytest.mark.parametrize(("group", "name", "pairs"), CONTESTANTS, ids=lambda part: str(part)[:40])
def test_a_contestant_builds(group, name, pairs):
    cfg = get_cfg()
    add_tr_det_config(cfg)
    merge_file(cfg, str(compare_methods.CONFIG))
    merge_pairs(cfg, pairs)
    check_config(cfg)
    cfg.MODEL.DEVICE = "meta"
    model = QuantTrainer.build_model(cfg)
    assert any(quantized_layers(model))
    QuantTrainer.build_optimizer(cfg, model)


def test_all_quantizers_and_methods_are_there():
    said = json.dumps(CONTESTANTS)
    assert all(name in said for name in (*QUANTIZERS, *METHODS))


def test_a_result_is_made_once_and_shown(tmp_path):
    args = SimpleNamespace(iterations=3, seed=1, threads=1, output=tmp_path)
    contestant = ("quantizers", "lsq", ["A", "b"])
    folder = tmp_path / "quantizers_lsq_3_1"
    folder.mkdir()
    result = {"name": "lsq", "AP": 12.34, "seconds": 0.5, "memory_mb": 1234.5}
    result |= {"rate": 0.01, "by_scale": 0.002}
    (folder / "result.json").write_text(json.dumps(result))
    assert compare_methods.result_of(contestant, args) == result
    text = compare_methods.table([result, {"name": "broken", "status": 1}])
    assert "| lsq | 12.3 | 0.500 | 1,234 | 1.000 | 0.200 |" in text
    assert "| broken | failed |" in text
