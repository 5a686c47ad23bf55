"""What Detectron2's own ``build_model`` and ``DefaultPredictor`` make of a config of ours."""

import pytest
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from tr_det.core import quantized_layers

PLAIN = ("MODEL.META_ARCHITECTURE", "RetinaNet")


@pytest.mark.parametrize("build", [build_model, lambda cfg: DefaultPredictor(cfg).model])
def test_an_architecture_of_detectron2s_is_quantized(make_config, build):
    model = build(make_config(*PLAIN, "MODEL.WEIGHTS", ""))
    assert len(list(quantized_layers(model))) > 20
    assert type(model) is META_ARCH_REGISTRY.get("RetinaNet")


def test_a_value_that_cannot_be_meant_is_refused(make_config):
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR=0\.0: must be positive"):
        build_model(make_config(*PLAIN, "SOLVER.BASE_LR", 0.0))


def test_a_config_without_our_keys_is_detectron2s_alone(make_config):
    ours, cfg = make_config(*PLAIN), get_cfg()
    for key in ("RESNETS", "FPN"):
        cfg.MODEL[key].update(ours.MODEL[key])
    cfg.merge_from_list([*PLAIN, "MODEL.DEVICE", "cpu", "SOLVER.BASE_LR", 0.0])
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    assert not any(quantized_layers(build_model(cfg)))
