import pytest
import torch

from tr_det.classification.config.file import from_tree
from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.engine.solver import build_optimizer
from tr_det.classification.models.registry import quantize_network
from tr_det.classification.models.resnet_cifar import ResNetCIFAR
from tr_det.core import QuantConfig


def optimizer(name, no_decay):
    model = ResNetCIFAR(depth=8, width=4)
    quantize_network(model, "resnet_cifar", QuantConfig(weight_bits=2, act_bits=2))
    solver = {"optimizer": name, "no_decay": no_decay, "weight_decay": 0.1}
    tree = {"quant": {"bits": "W2A2"}, "solver": solver}
    return model, build_optimizer(from_tree(ClassifierConfig, tree), model, total_steps=5)


@pytest.mark.parametrize("name", ["SGD", "AdamWT"])
def test_what_no_decay_names_has_none_and_nothing_is_lost(name):
    model, built = optimizer(name, ["*bn*", "fc.bias", "blocks.1.conv1.weight"])
    decay = {p: group["weight_decay"] for group in built.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        free = "bn" in key or key in ("fc.bias", "blocks.1.conv1.weight") or "quantizer" in key
        assert decay[parameter] == (0.0 if free else 0.1), key
    assert sum("talr" in group for group in built.param_groups) == 6 * (name == "AdamWT")


def test_without_it_groups_are_as_they_were():
    groups = [group["params"] for group in optimizer("SGDT", [])[1].param_groups]
    assert len(groups) == 8  # the rest, six weights, the scales
    assert all(isinstance(p, torch.nn.Parameter) for group in groups for p in group)
