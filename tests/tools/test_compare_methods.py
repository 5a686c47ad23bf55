"""Every variant is a config that builds; results become a table."""

import json
from types import SimpleNamespace

import compare_methods
import pytest

from tr_det.core import METHODS, QUANTIZERS, quantized_layers
from tr_det.detection import QuantTrainer
from tr_det.detection.config.reading import load_config

VARIANTS = [each for make in compare_methods.GROUPS.values() for each in make()]


@pytest.mark.parametrize(("group", "name", "pairs"), VARIANTS, ids=lambda part: str(part)[:40])
def test_a_variant_builds(group, name, pairs):
    cfg = load_config(compare_methods.CONFIG, pairs)
    cfg.MODEL.DEVICE = "meta"
    model = QuantTrainer.build_model(cfg)
    assert any(quantized_layers(model))
    QuantTrainer.build_optimizer(cfg, model)


def test_all_quantizers_and_methods_are_there():
    said = json.dumps(VARIANTS)
    assert all(name in said for name in (*QUANTIZERS, *METHODS))


def test_a_result_is_made_once_and_shown(tmp_path):
    args = SimpleNamespace(iterations=3, seed=1, threads=1, output=tmp_path)
    variant = ("quantizers", "lsq", ["A", "b"])
    folder = tmp_path / "quantizers_lsq_3_1"
    folder.mkdir()
    result = {"name": "lsq", "AP": 12.34, "seconds": 0.5, "memory_mb": 1234.5}
    result |= {"rate": 0.01, "by_scale": 0.002}
    (folder / "result.json").write_text(json.dumps(result))
    assert compare_methods.result_of(variant, args) == result
    text = compare_methods.table([result, {"name": "broken", "status": 1}])
    assert "| lsq | 12.3 | 0.500 | 1,234 | 1.000 | 0.200 |" in text
    assert "| broken | failed |" in text
