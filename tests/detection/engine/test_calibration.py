import pytest
import torch
from detectron2.layers import CycleBatchNormList
from detectron2.modeling import build_model
from torch import nn

from tr_det.core import is_calibrated
from tr_det.detection import QuantTrainer, calibrate
from tr_det.detection.engine.calibration import update_norms


def test_a_detector_gets_its_scales_and_norms_and_is_otherwise_as_before(make_config):
    cfg = make_config()
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    seen = []
    layer = model.backbone.bottom_up.res2[0].conv1
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    batches = [batch for batch, _ in zip(QuantTrainer.build_train_loader(cfg), range(2))]
    calibrate(model, batches, 2)
    assert is_calibrated(model)
    assert not model.training
    assert not hasattr(model, "loss_normalizer")
    expected = 3 * seen[0].double().std() / (1 - 2 / torch.pi) ** 0.5
    assert layer.input_quantizer.scale.item() == pytest.approx(expected.item(), rel=1e-5)
    measured = {key: value.clone() for key, value in model.state_dict().items()}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    update_norms(model, batches, 2)
    for key, value in model.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(value, measured[key], msg=key)


def test_zero_batches_are_refused_by_key():
    with pytest.raises(ValueError, match=r"MODEL\.QUANT\.CALIBRATION_BATCHES=0"):
        calibrate(nn.Identity(), [], 0)


def test_the_heads_norms_per_level_need_no_output_scale(make_config):
    model = build_model(make_config())
    assert isinstance(model.head.cls_subnet[1], CycleBatchNormList)
    assert model.head.cls_subnet[0].output_scale is None
