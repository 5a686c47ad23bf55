import pytest
import torch
from detectron2.layers import CycleBatchNormList
from detectron2.modeling import build_model
from torch import nn

from tr_det.core import is_calibrated, quantized_layers
from tr_det.detection import QuantTrainer, calibrate
from tr_det.detection.engine.calibration import update_norms


def test_calibration_sets_every_scale_by_the_papers_formula(make_config):
    cfg = make_config()
    model = build_model(cfg).eval()
    assert not is_calibrated(model)
    calibrate(model, QuantTrainer.build_train_loader(cfg), 2)
    assert is_calibrated(model)
    assert not model.training
    assert not hasattr(model, "loss_normalizer")
    for _, layer in quantized_layers(model):
        expected = 3 * layer.weight.double().std()
        assert layer.weight_quantizer.scale.item() == pytest.approx(expected.item(), rel=1e-5)


def test_input_scales_come_from_the_first_batch(make_config):
    cfg = make_config()
    model = build_model(cfg)
    seen = []
    layer = model.backbone.bottom_up.res2[0].conv1
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    calibrate(model, QuantTrainer.build_train_loader(cfg), 2)
    expected = 3 * seen[0].double().std() / (1 - 2 / torch.pi) ** 0.5
    assert layer.input_quantizer.scale.item() == pytest.approx(expected.item(), rel=1e-5)


def test_norm_statistics_become_those_of_the_quantized_network(make_config):
    cfg = make_config()
    torch.manual_seed(0)
    model = build_model(cfg)
    batches = [batch for batch, _ in zip(QuantTrainer.build_train_loader(cfg), range(3))]
    calibrate(model, batches, 3)
    outputs = []
    layer = model.backbone.bottom_up.res2[0].conv1
    layer.norm.register_forward_pre_hook(lambda _, args: outputs.append(args[0].detach()))
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    pooled = torch.cat([y.transpose(0, 1).flatten(1) for y in outputs], dim=1)
    # The stem and its norm are the same in training and evaluation only up to its statistics.
    torch.testing.assert_close(layer.norm.running_mean, pooled.mean(1), rtol=0.2, atol=0.2)


def test_a_second_calibration_keeps_the_scales(make_config):
    cfg = make_config()
    model = build_model(cfg)
    loader = QuantTrainer.build_train_loader(cfg)
    calibrate(model, loader, 1)
    before = [layer.input_quantizer.scale.item() for _, layer in quantized_layers(model)]
    calibrate(model, loader, 1)
    assert before == [layer.input_quantizer.scale.item() for _, layer in quantized_layers(model)]


def test_zero_batches_are_refused_by_key(make_config):
    with pytest.raises(ValueError, match=r"MODEL\.QUANT\.CALIBRATION_BATCHES=0"):
        calibrate(nn.Identity(), [], 0)


def test_the_heads_norms_per_level_need_no_output_scale(make_config):
    model = build_model(make_config())
    assert isinstance(model.head.cls_subnet[1], CycleBatchNormList)
    assert model.head.cls_subnet[0].output_scale is None


def test_norms_alone_are_measured_anew(make_config):
    cfg = make_config()
    model = build_model(cfg)
    batches = [batch for batch, _ in zip(QuantTrainer.build_train_loader(cfg), range(2))]
    calibrate(model, batches, 2)
    measured = {key: value.clone() for key, value in model.state_dict().items()}
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    update_norms(model, batches, 2)
    assert not model.training
    for key, value in model.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(value, measured[key], msg=key)
