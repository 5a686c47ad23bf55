"""Weights from and for other projects."""

import logging
import pickle

import dequantize
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torchvision import models

from tr_det.core import quantized_layers
from tr_det.core.nn.dequantize import dequantized_weight
from tr_det.detection import QuantCheckpointer, QuantTrainer, calibrate

PREFIX = "backbone.bottom_up."


@pytest.fixture
def wide_config(make_config):
    """Return ``make(*overrides)``: ResNet-18 at the width of other projects' checkpoints."""

    def make(*overrides):
        return make_config(
            "MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, *overrides
        )

    return make


def test_every_weight_of_torchvisions_resnet_is_used(wide_config, tmp_path):
    """In full precision, the backbone computes what torchvision's does."""
    torch.manual_seed(0)
    theirs = models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    model = build_model(wide_config("MODEL.QUANT.ENABLED", False)).eval()
    QuantCheckpointer(model, allow_partial=True).load(str(tmp_path / "resnet18.pth"))
    x = torch.randn(1, 3, 64, 64)
    trunk = torch.nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad():
        ours = model.backbone.bottom_up(x)["res5"]
        torch.testing.assert_close(ours, trunk(x), rtol=1e-5, atol=1e-6)


def test_torchvisions_mobilenet_loads_into_the_backbone(make_config, tmp_path):
    theirs = models.mobilenet_v2(width_mult=0.25)
    torch.save(theirs.state_dict(), tmp_path / "mobilenet.pth")
    cfg = make_config("MODEL.BACKBONE.NAME", "build_retinanet_quant_mobilenetv2_fpn_backbone")
    cfg.MODEL.MOBILENETV2.WIDTH = 0.25
    model = build_model(cfg)
    QuantCheckpointer(model, allow_partial=True).load(str(tmp_path / "mobilenet.pth"))
    own = model.state_dict()
    for key, value in theirs.features.state_dict().items():
        assert torch.equal(own[f"{PREFIX}features.{key}"], value), key


def test_a_classifiers_weights_are_refused_unless_allowed(wide_config, tmp_path):
    torch.save(models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"resnet18\.pth does not fit .*ALLOW_PARTIAL_WEIGHTS"):
        QuantCheckpointer(build_model(wide_config())).load(str(tmp_path / "resnet18.pth"))


def caffe2_name(key):
    """Return a Detectron2 backbone key by its Caffe2 name, as in ImageNetPretrained/MSRA."""
    for ours, theirs in (
        ("stem.conv1", "conv1"),
        ("shortcut", "branch1"),
        ("norm.weight", "bn_s"),
        ("norm.bias", "bn_b"),
        ("weight", "w"),
        (".", "_"),
    ):
        key = key.replace(ours, theirs)
    for number, letter in (("1", "a"), ("2", "b")):
        if key.startswith("res") and "_conv" in key:
            key = key.replace(f"_conv{number}_", f"_branch2{letter}_")
    return key.replace("conv1_bn_", "res_conv1_bn_") if key.startswith("conv1_bn") else key


def test_an_imagenet_pkl_with_caffe2_names_loads(wide_config, tmp_path):
    torch.manual_seed(1)
    source = build_model(wide_config("MODEL.QUANT.ENABLED", False)).backbone.bottom_up
    blobs = {caffe2_name(key): value.detach().numpy() for key, value in source.named_parameters()}
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch2a_w", "res3_0_branch1_bn_b"} <= set(blobs)
    with open(tmp_path / "R-18.pkl", "wb") as file:
        pickle.dump(blobs, file)
    model = build_model(wide_config())
    QuantCheckpointer(model, allow_partial=True).load(str(tmp_path / "R-18.pkl"))
    own = dict(model.backbone.bottom_up.named_parameters())
    for key, value in source.named_parameters():
        assert torch.equal(own[key], value), key


def test_a_detector_of_the_model_zoo_loads_strictly(wide_config, tmp_path, caplog):
    frozen = ("MODEL.RESNETS.NORM", "FrozenBN")
    source = build_model(wide_config("MODEL.QUANT.ENABLED", False, *frozen))
    weights = {key: value.numpy() for key, value in source.state_dict().items()}
    with open(tmp_path / "model_final.pkl", "wb") as file:
        pickle.dump({"model": weights, "__author__": "Detectron2 Model Zoo"}, file)
    model = build_model(wide_config(*frozen))
    with caplog.at_level(logging.INFO):
        QuantCheckpointer(model).load(str(tmp_path / "model_final.pkl"))
    assert "all of them quantizer state" in caplog.text
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in source.state_dict().items())
    del weights["head.cls_score.weight"]
    with open(tmp_path / "holes.pkl", "wb") as file:
        pickle.dump({"model": weights, "__author__": "Detectron2 Model Zoo"}, file)
    with pytest.raises(ValueError, match=r"holes\.pkl .* 1 missing \(head\.cls_score\.weight\)"):
        QuantCheckpointer(model).load(str(tmp_path / "holes.pkl"))


def run_tool(cfg, folder, monkeypatch):
    """De-quantize the config's weights; return the written file."""
    (folder / "config.yaml").write_text(cfg.dump())
    output, config = str(folder / "plain.pth"), str(folder / "config.yaml")
    monkeypatch.setattr("logging.raiseExceptions", False)
    monkeypatch.setattr("sys.argv", ["", "--output", output, "--config-file", config])
    dequantize.main()
    return output


def test_plain_retinanet_loads_dequantized_weights(wide_config, tmp_path, capsys, monkeypatch):
    cfg = wide_config("MODEL.QUANT.HEAD_INPUT_RELU", False)
    model = build_model(cfg)
    calibrate(model, QuantTrainer.build_train_loader(cfg), 1)
    QuantCheckpointer(model, str(tmp_path)).save("w4a4")
    cfg.MODEL.WEIGHTS = str(tmp_path / "w4a4.pth")
    output = run_tool(cfg, tmp_path, monkeypatch)
    expected = len(list(quantized_layers(model)))
    assert f"{expected} layers de-quantized" in capsys.readouterr().out
    cfg = wide_config("MODEL.QUANT.ENABLED", False, "MODEL.META_ARCHITECTURE", "RetinaNet")
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    plain = build_model(cfg)
    DetectionCheckpointer(plain).load(output)
    own = plain.state_dict()
    saved = torch.load(output, weights_only=True)["model"]
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in own.items()}
    for name, layer in quantized_layers(model):
        assert torch.equal(own[f"{name}.weight"], dequantized_weight(layer)), name


def test_a_full_precision_checkpoint_is_refused_by_the_tool(
    wide_config, tmp_path, capsys, monkeypatch
):
    cfg = wide_config()
    QuantCheckpointer(build_model(wide_config("MODEL.QUANT.ENABLED", False)), str(tmp_path)).save(
        "fp"
    )
    cfg.MODEL.WEIGHTS = str(tmp_path / "fp.pth")
    with pytest.raises(SystemExit, match="2"):
        run_tool(cfg, tmp_path, monkeypatch)
    assert "no scale yet" in capsys.readouterr().err
