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
    """A subclass that nobody has registered."""


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


def test_skipped_layers_stay_what_they_are() -> None:
    model = _model()
    report = quantize_model(model, _rules(*FIRST_AND_LAST))
    assert [type(model[i]) for i in (0, 3, 5, 6)] == [
        nn.Conv2d,
        QuantConv2d,
        QuantConv2d,
        nn.Linear,
    ]
    assert [name for name, _ in quantized_layers(model)] == ["3", "5"]
    assert [(layer.name, layer.reason) for layer in report.skipped] == [
        ("0", "rule '0'"),
        ("6", "rule '6'"),
    ]


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
    assert bits == [(32, 32, False), (2, 3, False), (2, 8, True), (32, 32, False)]
    assert [layer.reason for layer in report.skipped] == ["rule '*'", "32 bits asked for"]


@pytest.mark.parametrize("pattern", ["7", "conv*", "[0", "3.weight"])
def test_rule_that_matches_nothing_raises_unless_optional(pattern: str) -> None:
    model = _model()
    before = _types(model)
    with pytest.raises(ValueError) as error:
        quantize_model(model, _rules({"pattern": pattern, "skip": True}))
    assert repr(pattern) in str(error.value)
    assert "layers are 0, 3, 5, 6" in str(error.value)
    assert _types(model) == before
    report = quantize_model(model, _rules({"pattern": pattern, "skip": True, "optional": True}))
    assert len(report.quantized) == 4


def test_report_says_what_was_done_and_what_it_stores() -> None:
    report = quantize_model(_model(), _rules(*FIRST_AND_LAST, {"pattern": "5", "weight_bits": 2}))
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
    assert "W2A4  unsigned input, output scale" in table[3]
    assert "left alone: rule '6'" in table[4]
    assert table[5].startswith("2 of 4 layers quantized; storage")


def test_layers_kept_in_plain_lists_are_converted_too() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.stages = [self.first, self.second]

    model = Pyramid()
    quantize_model(model, QuantConfig())
    assert [type(stage) for stage in model.stages] == [QuantLinear, QuantLinear]
    assert model.stages[0] is model.first


def test_shared_module_is_one_layer() -> None:
    head = nn.Conv2d(4, 4, 3)
    model = nn.ModuleDict({"level3": nn.Sequential(head), "level4": nn.Sequential(head)})
    report = quantize_model(model, QuantConfig())
    assert [layer.name for layer in report.layers] == ["level3.0"]
    assert len(list(quantized_layers(model))) == 1


@pytest.mark.parametrize(
    "layer",
    [
        MyConv(4, 4, 3),
        nn.Conv1d(4, 4, 3),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Embedding(4, 4),
        nn.Bilinear(2, 2, 2),
        nn.LSTM(2, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_unknown_layer_is_left_alone_with_a_reason(layer: nn.Module) -> None:
    model, kind = nn.Sequential(layer), type(layer)
    (entry,) = quantize_model(model, QuantConfig()).layers
    assert type(layer) is kind
    assert entry.reason == f"no quantized class for {kind.__name__}; see register_quant_layer"
    assert entry.num_weights > 0


@pytest.mark.parametrize(
    ("source", "target"),
    [(MyConv, QuantConv2d), (nn.Conv2d, MyConv), (nn.Conv2d, QuantLinear), (nn.Conv2d, nn.Conv2d)],
)
def test_quantized_class_must_derive_from_both(source: type, target: type) -> None:
    with pytest.raises(ValueError, match=f"{target.__name__}: must derive from {source.__name__}"):
        register_quant_layer(source, target)


def test_registered_subclass_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_QUANT_LAYERS", dict(convert._QUANT_LAYERS))
    register_quant_layer(MyConv, MyQuantConv)
    model = nn.Sequential(MyConv(4, 4, 3), nn.Conv2d(4, 4, 3))
    quantize_model(model, QuantConfig())
    assert [type(layer) for layer in model] == [MyQuantConv, QuantConv2d]


def _frozen(norm: nn.Module) -> nn.Module:
    return norm.requires_grad_(False)


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


FOLLOWERS = {
    "nothing": (lambda: _conv(), False),
    "norm child": (lambda: _conv(nn.BatchNorm2d(4)), True),
    "group norm child": (lambda: _conv(nn.GroupNorm(2, 4)), True),
    "norms with shared affine": (lambda: _conv(_norms_with_shared_affine()), True),
    "frozen norm child": (lambda: _conv(_frozen(nn.BatchNorm2d(4))), False),
    "norm without affine": (lambda: _conv(nn.BatchNorm2d(4, affine=False)), False),
    "norm next": (lambda: nn.Sequential(_conv(), nn.BatchNorm2d(4)), True),
    "block of norm next": (
        lambda: nn.Sequential(_conv(), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())),
        True,
    ),
    "frozen norm next": (lambda: nn.Sequential(_conv(), _frozen(nn.BatchNorm2d(4))), False),
    "relu next": (lambda: nn.Sequential(_conv(), nn.ReLU(), nn.BatchNorm2d(4)), False),
    "norm before": (lambda: nn.Sequential(nn.BatchNorm2d(4), _conv()), False),
    "block with a layer next": (
        lambda: nn.Sequential(
            _conv(), nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.LayerNorm(4))
        ),
        False,
    ),
}


def _first(model: nn.Module) -> QuantConv2d:
    return next(layer for _, layer in quantized_layers(model) if isinstance(layer, QuantConv2d))


@pytest.mark.parametrize(("build", "normed"), FOLLOWERS.values(), ids=FOLLOWERS)
def test_output_scale_is_added_where_no_trainable_norm_follows(build, normed: bool) -> None:
    model = nn.Sequential(build())
    report = quantize_model(model, QuantConfig(output_scale="auto"))
    assert (_first(model).output_scale is None) == normed
    assert report.layers[0].output_scale != normed
    always = nn.Sequential(build())
    quantize_model(always, QuantConfig(output_scale="always"))
    assert _first(always).output_scale is not None


@pytest.mark.parametrize(("build", "normed"), FOLLOWERS.values(), ids=FOLLOWERS)
def test_output_scale_never_is_refused_where_no_norm_follows(build, normed: bool) -> None:
    model = nn.ModuleDict({"good": _conv(nn.BatchNorm2d(4)), "block": nn.Sequential(build())})
    config, before = QuantConfig(output_scale="never"), _types(model)
    if normed:
        quantize_model(model, config)
        assert all(layer.output_scale is None for _, layer in quantized_layers(model))
    else:
        with pytest.raises(
            ValueError, match=r"^output_scale='never': must be 'auto' or .* for layer 'block\.0"
        ):
            quantize_model(model, config)
        assert _types(model) == before
        assert not any("quantizer" in name for name in model.state_dict())


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
        fields = ("name", "num_weights", "weight_bits", "act_bits", "signed_input", "output_scale")
        assert [getattr(new, key) for key in fields] == [getattr(old, key) for key in fields]
    assert second.other_parameters == first.other_parameters
    assert second.storage_mb() == first.storage_mb()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"weight_bits": 2}, r"^weight_bits=2: must be 4, at which '0' is quantized already"),
        ({"act_bits": 32}, r"^act_bits=32: must be 4, at which '0' is quantized already"),
        ({"act_quantizer": "lsq"}, r"^act_quantizer='lsq': must be 'fixed_grid', at which '0' is"),
    ],
)
def test_second_call_that_wants_something_else_is_refused(other: dict, message: str) -> None:
    model = _model()
    quantize_model(model, QuantConfig())
    before = _types(model)
    with pytest.raises(ConfigError, match=message):
        quantize_model(model, QuantConfig(**other))
    assert _types(model) == before


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


@pytest.mark.parametrize("training", [True, False])
def test_new_children_follow_the_mode_of_their_layer(training: bool) -> None:
    model = _model().train(training)
    quantize_model(model, QuantConfig())
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize("learned", [True, False])
def test_learn_weight_scale_says_which_scales_are_trained(learned: bool) -> None:
    model = _model()
    quantize_model(model, QuantConfig(learn_weight_scale=learned))
    for _, layer in quantized_layers(model):
        assert layer.weight_quantizer.scale.requires_grad == learned
        assert layer.input_quantizer.scale.requires_grad
