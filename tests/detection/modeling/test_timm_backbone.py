"""Models of timm as backbones of RetinaNet: random weights, images of 64 px."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils.events import EventStorage

from tr_det.core import QuantConfig, quantize_model, quantized_layers, set_scales
from tr_det.detection import QuantCheckpointer, QuantTrainer, build_optimizer
from tr_det.detection.config.reading import load_config
from tr_det.detection.modeling.timm_backbone import load_weights
from tr_det.runtime.timm_models import timm_library

timm = pytest.importorskip("timm", reason="needs timm")

FPN = "build_retinanet_quant_timm_fpn_backbone"
BODY = "backbone.bottom_up.body."
# Options that make it small, the first layer, an input that can be negative, one that cannot.
MODELS = {
    "tf_efficientnet_lite0": ([], "conv_stem", "blocks.1.0.conv_pw", "blocks.1.0.conv_dw"),
    "mobilenetv3_small_050": ([], "conv_stem", "blocks.2.0.conv_pwl", "blocks.1.0.conv_pwl"),
    "resnet18d": (["channels=[8,8,16,16]"], "conv1.0", "", "layer4.1.conv2"),
    "convnext_atto": (["dims=[8,8,16,16]"], "stem_0", "stages_1.blocks.0.mlp.fc2", ""),
    "regnetx_002": ([], "stem.conv", "", "s4.b1.conv3.conv"),
}


@pytest.fixture
def timm_config(tiny, scenes, tmp_path):
    def make(name, *pairs, options=()):
        small = [word for pair in tiny.SMALL.items() for word in pair]
        small += ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.BACKBONE.NAME", FPN]
        small += ["MODEL.TIMM.NAME", name, "MODEL.TIMM.OPTIONS", list(options)]
        return load_config(tiny.BASE, [*small, *pairs])

    return make


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_timm_trains_evaluates_and_is_restored(name, timm_config, tmp_path):
    options, first, signed, unsigned = MODELS[name]
    torch.manual_seed(0)
    cfg = timm_config(name, options=options)
    assert (cfg.INPUT.FORMAT, len(cfg.MODEL.PIXEL_MEAN)) == ("RGB", 3)
    model = QuantTrainer.build_model(cfg)
    alone = {layer.name for layer in model.quant_report.skipped}
    assert alone == {BODY + first, "head.cls_score", "head.bbox_pred"}
    optimizer = build_optimizer(cfg, model)
    layers = dict(quantized_layers(model))
    before = {key: layer.weight.detach().clone() for key, layer in layers.items()}
    with EventStorage():
        for _, batch in zip(range(2), QuantTrainer.build_train_loader(cfg), strict=False):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert not any(torch.equal(layer.weight, before[key]) for key, layer in layers.items())
    signs = {key: layer.input_quantizer.signed for key, layer in layers.items()}
    assert not signed or signs[BODY + signed]
    assert not unsigned or not signs[BODY + unsigned]
    QuantCheckpointer(model, str(tmp_path)).save("trained")
    again = QuantTrainer.build_model(cfg)
    QuantCheckpointer(again).load(str(tmp_path / "trained.pth"), checkpointables=[])
    image = [{"image": batch[0]["image"]}]
    with torch.no_grad():
        one, two = (m.eval()(image)[0]["instances"] for m in (model, again))
    assert torch.equal(one.scores, two.scores)
    assert torch.equal(one.pred_boxes.tensor, two.pred_boxes.tensor)


def test_in_full_precision_it_is_timm_s_model_from_a_file(timm_config, tmp_path):
    name, file = "tf_efficientnet_lite0", str(tmp_path / "weights.pth")
    theirs = timm.create_model(name, features_only=True, out_indices=(2, 3, 4)).eval()
    whole = timm.create_model(name)
    whole.load_state_dict(theirs.state_dict(), strict=False)
    torch.save(whole.state_dict(), file)
    pairs = ["MODEL.QUANT.ENABLED", False, "MODEL.TIMM.WEIGHTS", file]
    cfg = timm_config(name, *pairs)
    build = BACKBONE_REGISTRY.get("build_quant_timm_backbone")
    ours = build(cfg, ShapeSpec(channels=3)).eval()
    x = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        outs, expected = ours(x), theirs(x)
    for (key, spec), feature in zip(ours.output_shape().items(), expected, strict=True):
        assert torch.equal(outs[key], feature)
        assert spec.channels == feature.shape[1]
        assert -(-70 // spec.stride) == feature.shape[2]


@pytest.mark.parametrize("size", [15, 16])
def test_padding_that_follows_the_image_is_that_of_full_precision(size):
    """At 8 bits, where quantization itself is small."""
    torch.manual_seed(0)
    conv = timm.layers.create_conv2d(4, 8, 5, stride=2, padding="same")
    assert type(conv).__name__ == "Conv2dSame"
    model = torch.nn.Sequential(conv)
    x = torch.randn(2, 4, size, size)
    with torch.no_grad():
        expected = model(x)
    options = {"weight_quantizer": "lsq", "act_quantizer": "lsq"}
    timm_library("name", "any")
    report = quantize_model(model, QuantConfig(weight_bits=8, act_bits=8, **options))
    assert len(report.quantized) == 1
    set_scales(model, lambda: model(x))
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0.15)


def test_names_that_timm_flattens_are_found(tmp_path):
    small = {"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8)}
    whole = timm.create_model("convnext_atto", **small)
    body = timm.create_model("convnext_atto", features_only=True, **small)
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "whole.pth")
    load_weights(body, str(tmp_path / "whole.pth"))
    assert torch.equal(body.state_dict()["stem_0.weight"], whole.state_dict()["stem.0.weight"])


@pytest.mark.parametrize(
    ("name", "pairs", "message"),
    [
        ("efficientnet_liteO", [], r"^MODEL\.TIMM\.NAME='efficientnet_liteO'.*'efficientnet_lite"),
        ("resnet18d.mine", [], r"^MODEL\.TIMM\.NAME='resnet18d\.mine'.*'resnet18d\.ra2_in1k'"),
        ("resnet18d", ["MODEL.BACKBONE.FREEZE_AT", 2], r"FREEZE_AT=2: must be 0 with a timm"),
        ("resnet18d", ["MODEL.TIMM.NORM", "GN"], r"^MODEL\.TIMM\.NORM='GN': must be one of"),
    ],
)
def test_a_config_that_timm_cannot_follow_is_refused(name, pairs, message, timm_config):
    with pytest.raises(ValueError, match=message):
        timm_config(name, *pairs)


DYNAMIC = ["MODEL.TIMM.OPTIONS", ["dynamic_img_size=True", "depth=3"]]


@pytest.mark.parametrize(
    ("name", "pairs", "message"),
    [
        ("vit_tiny_patch16_224", DYNAMIC, r"stride \[8, 32\]; this one's are of \[16, 16, 16\]"),
        ("swin_tiny_patch4_window7_224", [], r"images of any size.*strict_img_size=False"),
        ("convnext_atto", ["MODEL.TIMM.NORM", "FrozenBN"], "no batch norm"),
        ("resnet18d", ["MODEL.TIMM.OPTIONS", ["foo=1"]], r"MODEL\.TIMM\.OPTIONS=.*'foo'"),
        ("resnet18d", ["MODEL.TIMM.OPTIONS", ["in_chans=1"]], r"without \['in_chans'\]"),
    ],
)
def test_a_model_that_cannot_be_a_backbone_is_refused(name, pairs, message, timm_config):
    cfg = timm_config(name)
    cfg.merge_from_list(pairs)
    with pytest.raises(ValueError, match=message):
        QuantTrainer.build_model(cfg)


def test_weights_of_another_model_are_refused(timm_config, tmp_path):
    file = str(tmp_path / "other.pth")
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), file)
    cfg = timm_config("resnet18d", "MODEL.TIMM.WEIGHTS", file)
    with pytest.raises(
        ValueError, match=r"other\.pth: not the weights of this model: keys \d+ mis"
    ):
        QuantTrainer.build_model(cfg)


def test_images_are_as_the_weights_expect(timm_config):
    assert timm_config("resnet18d").MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    own = ["MODEL.TIMM.NORMALIZATION", "config", "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]]
    cfg = timm_config("resnet18d", *own)
    assert (cfg.MODEL.PIXEL_MEAN, cfg.INPUT.FORMAT) == ([1.0, 2.0, 3.0], "BGR")
    cfg.MODEL.TIMM.NORMALIZATION = "weights"  # as under Detectron2's own tools
    with pytest.raises(ValueError, match=r"PIXEL_MEAN=\[1\.0, 2\.0, 3\.0\]: must be \[123\.675"):
        QuantTrainer.build_model(cfg)
