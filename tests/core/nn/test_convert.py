"""`quantize_model`: rules, the report, what is converted and what gets an output scale."""

import copy

import pytest
import torch
from torch import nn

from tr_det.core import (
    ConfigError,
    QuantConfig,
    QuantConv2d,
    QuantLinear,
    QuantRule,
    quantize_model,
    quantized_layers,
    register_quant_layer,
    set_scales,
)
from tr_det.core.nn import convert


class MyConv(nn.Conv2d):
    """A subclass that is not registered at first."""


class MyQuantConv(QuantConv2d, MyConv):
    """Its quantized class."""


def _model() -> nn.Sequential:
    """Three convolutions of 3*8*9 = 216 and 8*8*9 = 576 weights, and a linear layer of 40."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3),
        nn.Linear(8, 5),
    )


def _rules(*rules: dict) -> QuantConfig:
    return QuantConfig(rules=tuple(QuantRule(**rule) for rule in rules))


def _types(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


FIRST_AND_LAST = ({"pattern": "0", "skip": True}, {"pattern": "6", "skip": True})


def test_later_rules_win_field_by_field() -> None:
    report = quantize_model(
        _model(),
        _rules(
            {"pattern": "*", "skip": True, "weight_bits": 2, "act_bits": 3},
            {"pattern": "[356]", "skip": False},
            {"pattern": "5", "act_bits": 8, "signed_input": True},
            {"pattern": "6", "weight_bits": 32, "act_bits": 32},
        ),
    )
    bits = [(layer.weight_bits, layer.act_bits, layer.signed_input) for layer in report.layers]
    assert bits == [(32, 32, False), (2, 3, None), (2, 8, True), (32, 32, False)]
    assert [layer.reason for layer in report.skipped] == ["rule '*'", "32 bits asked for"]


@pytest.mark.parametrize("pattern", ["7", "conv*", "[0", "3.weight"])
def test_rule_that_matches_nothing_raises_unless_optional(pattern: str) -> None:
    model = _model()
    before = _types(model)
    with pytest.raises(ConfigError, match="layers are 0, 3, 5, 6") as error:
        quantize_model(model, _rules({"pattern": pattern, "skip": True}))
    assert error.value.value == pattern
    assert _types(model) == before
    report = quantize_model(model, _rules({"pattern": pattern, "skip": True, "optional": True}))
    assert len(report.quantized) == 4


def test_report_says_what_was_done_and_what_it_stores() -> None:
    model = _model()
    report = quantize_model(model, _rules(*FIRST_AND_LAST, {"pattern": "5", "weight_bits": 2}))
    kinds = [nn.Conv2d, QuantConv2d, QuantConv2d, nn.Linear]
    assert [type(model[i]) for i in (0, 3, 5, 6)] == kinds
    assert [name for name, _ in quantized_layers(model)] == ["3", "5"]
    assert [layer.reason for layer in report.skipped] == ["rule '0'", "rule '6'"]
    lines = [(x.name, x.kind, x.num_weights, x.weight_bits, x.act_bits) for x in report.layers]
    assert lines == [
        ("0", "Conv2d", 216, 32, 32),
        ("3", "Conv2d", 576, 4, 4),
        ("5", "Conv2d", 576, 2, 4),
        ("6", "Linear", 40, 32, 32),
    ]
    others = 2 * (8 + 8) + 8 + 5  # norms and biases, not the scales of quantizers
    assert report.other_parameters == others
    full = 32 * (216 + 576 + 576 + 40 + others)
    assert report.storage_mb(quantized=False) == pytest.approx(full / 8e6)
    low = 32 * (216 + 40 + others) + 4 * 576 + 2 * 576
    assert report.storage_mb() == pytest.approx(low / 8e6)
    table = report.table().splitlines()
    assert "W2A4  input's sign to be found, output scale" in table[3]
    assert "left alone: rule '6'" in table[4]
    assert table[5].startswith("2 of 4 layers quantized; storage")


def test_layers_that_are_also_in_plain_lists_are_converted() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.stages = [*model]
    quantize_model(model, QuantConfig())
    assert [type(stage) for stage in model.stages] == [QuantLinear, QuantLinear]
    assert model.stages[0] is model[0]


def test_shared_module_is_one_layer() -> None:
    head = nn.Conv2d(4, 4, 3)
    model = nn.ModuleDict({"level3": nn.Sequential(head), "level4": nn.Sequential(head)})
    report = quantize_model(model, QuantConfig())
    assert [layer.name for layer in report.layers] == ["level3.0"]
    assert len(list(quantized_layers(model))) == 1


@pytest.mark.parametrize(
    "layer",
    [MyConv(4, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Embedding(4, 4), nn.LSTM(2, 2)],
    ids=lambda layer: type(layer).__name__,
)
def test_unknown_layer_is_left_alone_with_a_reason(layer: nn.Module) -> None:
    model, kind = nn.Sequential(layer), type(layer)
    (entry,) = quantize_model(model, QuantConfig()).layers
    assert type(layer) is kind
    assert entry.reason == f"no quantized class for {kind.__name__}; see register_quant_layer"
    assert entry.num_weights > 0


@pytest.mark.parametrize(("source", "target"), [(MyConv, QuantConv2d), (nn.Conv2d, MyConv)])
def test_quantized_class_must_derive_from_both(source: type, target: type) -> None:
    with pytest.raises(ValueError, match=f"{target.__name__}: must derive from {source.__name__}"):
        register_quant_layer(source, target)


def test_registered_subclass_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_QUANT_LAYERS", dict(convert._QUANT_LAYERS))
    register_quant_layer(MyConv, MyQuantConv)
    model = nn.Sequential(MyConv(4, 4, 3), nn.Conv2d(4, 4, 3))
    quantize_model(model, QuantConfig())
    assert [type(layer) for layer in model] == [MyQuantConv, QuantConv2d]


def _norms_with_shared_affine() -> nn.ModuleList:
    norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
    for norm in norms[1:]:
        norm.weight, norm.bias = norms[0].weight, norms[0].bias
    return norms


def _conv(norm: nn.Module | None = None) -> nn.Conv2d:
    conv = nn.Conv2d(4, 4, 3)
    if norm is not None:
        conv.norm = norm
    return conv


FROZEN = nn.BatchNorm2d(4).requires_grad_(False)
SEQUENCE = nn.Sequential
FOLLOWERS = {
    "nothing": (_conv(), False),
    "norm child": (_conv(nn.BatchNorm2d(4)), True),
    "norms with shared affine": (_conv(_norms_with_shared_affine()), True),
    "frozen norm child": (_conv(FROZEN), False),
    "norm without affine": (_conv(nn.BatchNorm2d(4, affine=False)), False),
    "norm next": (SEQUENCE(_conv(), nn.GroupNorm(2, 4)), True),
    "block of norm next": (SEQUENCE(_conv(), SEQUENCE(nn.BatchNorm2d(4), nn.ReLU())), True),
    "frozen norm next": (SEQUENCE(_conv(), FROZEN), False),
    "relu next": (SEQUENCE(_conv(), nn.ReLU(), nn.BatchNorm2d(4)), False),
    "norm before": (SEQUENCE(nn.BatchNorm2d(4), _conv()), False),
    "layer next": (SEQUENCE(_conv(), SEQUENCE(nn.Linear(4, 4), nn.LayerNorm(4))), False),
}


@pytest.mark.parametrize(("block", "normed"), FOLLOWERS.values(), ids=FOLLOWERS)
def test_output_scale_is_added_where_no_trainable_norm_follows(block, normed: bool) -> None:
    for policy, added in (("auto", not normed), ("always", True), ("never", False)):
        model = nn.ModuleDict({"good": _conv(nn.BatchNorm2d(4)), "block": SEQUENCE(block)})
        model, config = copy.deepcopy(model), QuantConfig(output_scale=policy)
        if policy == "never" and not normed:
            before = _types(model)
            with pytest.raises(ConfigError, match=r"^output_scale='never': .* layer 'block\.0"):
                quantize_model(model, config)
            assert _types(model) == before
        else:
            report = quantize_model(model, config)
            layers = [layer for _, layer in quantized_layers(model)]
            assert [layer.output_scale is not None for layer in layers[:2]] == [
                policy == "always",
                added,
            ]
            assert report.layers[1].output_scale == added


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("policy", ["auto", "always", "never"])
@pytest.mark.parametrize("norm", [True, False])
def test_rule_has_the_last_word_on_the_output_scale(wanted, policy, norm) -> None:
    model = nn.Sequential(_conv(nn.BatchNorm2d(4) if norm else None))
    rule = QuantRule(pattern="0", output_scale=wanted)
    quantize_model(model, QuantConfig(output_scale=policy, rules=(rule,)))
    assert (model[0].output_scale is not None) == wanted


def test_second_call_changes_nothing_and_reports_the_same() -> None:
    model, config = _model(), _rules(*FIRST_AND_LAST, {"pattern": "5", "signed_input": True})
    first = quantize_model(model, config)
    set_scales(model, lambda: model[:6](torch.rand(1, 3, 12, 12)))
    state, quantizer = copy.deepcopy(model.state_dict()), model[3].weight_quantizer
    second = quantize_model(model, config)
    assert model[3].weight_quantizer is quantizer
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    for old, new in zip(first.quantized, second.quantized, strict=True):
        fields = ("name", "num_weights", "weight_bits", "act_bits", "output_scale", "sign_given")
        assert [getattr(new, key) for key in fields] == [getattr(old, key) for key in fields]
    assert [x.signed_input for x in first.quantized] == [None, True]
    assert [x.signed_input for x in second.quantized] == [False, True]
    assert second.other_parameters == first.other_parameters
    assert second.storage_mb() == first.storage_mb()


@pytest.mark.parametrize(
    ("key", "value", "present"),
    [
        ("weight_bits", 2, 4),
        ("act_bits", 32, 4),
        ("act_quantizer", "lsq", "fixed_grid"),
        ("weight_options", {"per_channel": True}, {}),
        ("learn_weight_scale", True, False),
        ("signed_input", True, False),
    ],
)
def test_second_call_that_wants_something_else_is_refused(key, value, present) -> None:
    model = _model()
    quantize_model(model, QuantConfig())
    with pytest.raises(ConfigError, match=rf"^{key}={value!r}: must be {present!r}, .*'0'"):
        quantize_model(model, QuantConfig(**{key: value}))


def test_second_call_cannot_leave_out_what_is_quantized() -> None:
    model = _model()
    quantize_model(model, QuantConfig())
    with pytest.raises(ConfigError, match="^rules='3': must be without skip where '3' is already"):
        quantize_model(model, _rules({"pattern": "3", "skip": True}))


def test_options_reach_the_quantizers_and_only_they_decide_on_output_scales() -> None:
    model = _model()
    config = QuantConfig(
        weight_quantizer="lsq",
        act_quantizer="lsq",
        weight_options={"per_channel": True, "gradient_scale": False, "learn_scale": True},
        act_options={"estimator": "round"},
    )
    quantize_model(model, config)
    for _, layer in quantized_layers(model):
        assert layer.weight_quantizer.scale.shape == layer.weight.shape[:1]
        assert layer.weight_quantizer.scale.requires_grad
        assert not layer.weight_quantizer.gradient_scale
        assert layer.input_quantizer.affine.estimator == "round"
        assert layer.output_scale is None  # values come in units of the weights


def test_prefix_is_part_of_every_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    rules = (QuantRule(pattern="head.box.0", skip=True),)
    report = quantize_model(model, QuantConfig(rules=rules), prefix="head.box")
    assert [layer.name for layer in report.layers] == ["head.box.0", "head.box.1"]
    assert type(model[0]) is nn.Linear
    assert model[1].input_quantizer.label == "head.box.1.input_quantizer"
    assert model[1].weight_quantizer.label == "head.box.1.weight_quantizer"
    with pytest.raises(ValueError, match="a pattern that matches a layer"):
        quantize_model(nn.Sequential(nn.Linear(4, 4)), QuantConfig(rules=rules), prefix="head")


@pytest.mark.parametrize("flag", [True, False])
def test_mode_and_trained_scales_of_the_new_children(flag: bool) -> None:
    model = _model().train(flag)
    quantize_model(model, QuantConfig(learn_weight_scale=flag))
    assert all(module.training == flag for module in model.modules())
    for _, layer in quantized_layers(model):
        assert layer.weight_quantizer.scale.requires_grad == flag
        assert layer.input_quantizer.scale.requires_grad
