import pytest

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.config.reading import from_tree
from tr_det.classification.engine.solver import build_optimizer
from tr_det.classification.models.registry import quantize_network
from tr_det.classification.models.resnet_cifar import ResNetCIFAR
from tr_det.core import QuantConfig


@pytest.mark.parametrize("name", ["SGD", "AdamWT"])
def test_parameters_named_in_no_decay_have_none_and_all_others_decay(name):
    model = ResNetCIFAR(depth=8, width=4)
    quantize_network(model, "resnet_cifar", QuantConfig(weight_bits=2, act_bits=2))
    named = ["*bn*", "fc.bias", "blocks.1.conv1.weight"]
    solver = {"optimizer": name, "no_decay": named, "weight_decay": 0.1}
    config = from_tree(ClassifierConfig, {"quant": {"bits": "W2A2"}, "solver": solver})
    built = build_optimizer(config, model, total_steps=5)
    decay = {p: group["weight_decay"] for group in built.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        free = "bn" in key or key in ("fc.bias", "blocks.1.conv1.weight") or "quantizer" in key
        assert decay[parameter] == (0.0 if free else 0.1), key
    assert sum("talr" in group for group in built.param_groups) == 6 * (name == "AdamWT")
