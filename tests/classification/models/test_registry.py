import importlib.util
from fnmatch import fnmatchcase

import pytest
import torch

from tests.classification.given import given_data
from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.config.reading import from_tree
from tr_det.classification.models.build import build_network
from tr_det.classification.models.registry import MODELS, build_model, quantize_network
from tr_det.core import QuantConfig, quantized_layers, set_scales

TIMM = {"efficientnet_lite0", "deit_tiny", "deit_small"}
NO_TIMM = importlib.util.find_spec("timm") is None
NAMES = [
    pytest.param(n, marks=pytest.mark.skipif(n in TIMM and NO_TIMM, reason="needs timm"))
    for n in MODELS
]
# Published: torchvision's tables; 4.65 M, 5.7 M and 22 M in timm's; 11,235 K for ReActNet-18 in
# the TR paper's supplement (CIFAR-100).
PARAMETERS = {
    "resnet_cifar": (100, {"depth": 20}, 275_700),
    "reactnet18": (100, {"small_images": True}, 11_235_044),
    "resnet18": (1000, {}, 11_689_512),
    "resnet34": (1000, {}, 21_797_672),
    "mobilenet_v2": (1000, {}, 3_504_872),
    "mobilenet_v3_small": (1000, {}, 2_542_856),
    "efficientnet_lite0": (1000, {}, 4_652_008),
    "deit_tiny": (1000, {}, 5_717_416),
    "deit_small": (1000, {}, 22_050_664),
}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_many_as_published(name):
    classes, options, expected = PARAMETERS[name]
    with torch.device("meta"):
        model = build_model(name, classes, **options)
    assert sum(p.numel() for p in model.parameters()) == expected


# Layers that read a linear bottleneck, a hard swish, a norm without ReLU, or a shift.
_HARD_SWISH = [
    f"features.{block}.block.{part}"
    for block in range(4, 12)
    for part in ("0.0", "1.0", "2.fc1", "3.0")
]
SIGNED = {
    "reactnet18": ["units.*.conv"],
    "mobilenet_v2": [f"features.{block}.conv.0.0" for block in range(2, 18)] + ["features.18.0"],
    "mobilenet_v3_small": [
        *(f"features.{block}.block.0.0" for block in (1, 2, 3)),
        *_HARD_SWISH,
        "features.12.0",
        "classifier.0",
    ],
    "efficientnet_lite0": ["blocks.[1-6].*.conv_pw", "conv_head"],
    "deit_tiny": ["blocks.*"],
    "deit_small": ["blocks.*"],
}


@pytest.mark.parametrize("name", NAMES)
def test_input_signs_are_found(name):
    torch.manual_seed(0)
    small = {"resnet_cifar": {"depth": 8}, "reactnet18": {"width": 8}}
    options = {"img_size": 32, "depth": 2} if "deit" in name else small.get(name, {})
    model = build_model(name, 10, **options)
    report = quantize_network(model, name, QuantConfig(weight_bits=4, act_bits=4))
    assert {layer.signed_input for layer in report.quantized} == {None}
    set_scales(model, lambda: model(torch.randn(4, 3, 32, 32)))
    globs = SIGNED.get(name, ())
    for key, layer in quantized_layers(model):
        assert layer.input_quantizer.signed == any(fnmatchcase(key, g) for g in globs), key


@pytest.mark.parametrize("name", NAMES)
def test_first_and_last_layers_stay_in_full_precision(name):
    model = build_model(name, 10)
    report = quantize_network(model, name, QuantConfig(weight_bits=2, act_bits=2))
    assert report.layers[0].reason
    assert report.layers[-1].reason
    kept = {layer.name for layer in report.skipped[1:-1]}
    shortcuts = {layer for layer in kept if name == "reactnet18" and layer.endswith("shortcut.1")}
    assert kept == shortcuts
    assert name != "reactnet18" or len(shortcuts) == 3


def test_timm_s_absence_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"deit_tiny.*pip install -e '\.\[timm\]'"):
        build_model("deit_tiny", 10)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet18", {"num_classes": 10, "in_channels": 1}, "must be resnet_cifar or reactnet18"),
        ("resnet18", {"num_classes": 10, "pretrained": True}, "1000 classes, the data has 10"),
    ],
)
def test_what_a_network_cannot_do_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **arguments)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small"])
def test_published_weights_may_get_a_new_last_layer(name, monkeypatch):
    from torchvision import models

    plain = models.get_model
    seen = []

    def unloaded(name, weights, **options):
        seen.append((weights, options["num_classes"]))
        return plain(name, weights=None, **options)

    monkeypatch.setattr(models, "get_model", unloaded)
    model = build_model(name, 3, pretrained=True, new_last_layer=True).eval()
    assert seen == [("IMAGENET1K_V1", 1000)]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    report = quantize_network(model, name, QuantConfig())
    assert report.layers[-1].reason


@pytest.mark.skipif(NO_TIMM, reason="needs timm")
def test_a_transformer_s_image_size_must_be_the_data_s():
    data = given_data([])
    tree = {"model": {"name": "deit_tiny"}, "data": {"name": "imagenet", "image_size": 32}}
    with pytest.raises(ValueError, match=r"data\.image_size=32: must be 224, the pixels that deit"):
        build_network(from_tree(ClassifierConfig, tree), data, published=False)
    tree["model"]["options"] = {"img_size": 32, "depth": 1}
    build_network(from_tree(ClassifierConfig, tree), data, published=False)
