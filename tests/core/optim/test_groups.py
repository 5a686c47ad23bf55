"""`tr_param_groups`: every trainable parameter once, in a fixed order, with its own options."""

import copy
import pickle

import pytest
import torch
from small_runs import loss, torch_class, tr_group, tr_groups, train
from torch import nn

from tr_det.core import (
    SGDT,
    ConfigError,
    QuantConfig,
    QuantRule,
    TransitionScheduled,
    build_quantizer,
    quantize_model,
    quantized_weight_groups,
    quantizer_groups,
    set_scales,
    tr_param_groups,
    without_transition,
)
from tr_det.core.optim.optimizers import OPTIMIZERS, make_optimizer
from tr_det.core.transition.settings import config_defaults


def _model(**options) -> nn.Sequential:
    """Return a model whose first layer stays in full precision; the last one has no norm."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 2, 3),
    )
    quantize_model(model, QuantConfig(rules=(QuantRule(pattern="0", skip=True),), **options))
    return model


def _names(model: nn.Module, group: dict) -> list[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for parameter in group["params"]]


def test_groups_are_the_rest_each_weight_and_the_scales() -> None:
    model = _model()
    rest, first, second, scales = tr_param_groups(model, lr=0.5, weight_decay=0.25)
    norms = ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert sorted(_names(model, rest)) == sorted(["0.weight", "0.bias", *norms, "4.bias"])
    assert (rest["lr"], rest["weight_decay"]) == (0.5, 0.25)
    assert "quantizer" not in rest
    for group, name, layer in ((first, "2.weight", model[2]), (second, "4.weight", model[4])):
        assert _names(model, group) == [group["name"]] == [name]
        assert group["quantizer"] is layer.weight_quantizer
        assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert _names(model, scales) == [
        "2.input_quantizer.scale",
        "4.input_quantizer.scale",
        "4.output_scale.scale",
    ]
    assert (scales["lr"], scales["weight_decay"]) == (0.05, 0.0)
    assert "quantizer" not in scales


@pytest.mark.parametrize("norm_weight_decay", [None, 0.0, 0.25])
@pytest.mark.parametrize("frozen", [None, "0.weight", "2.weight", "4.output_scale.scale"])
def test_every_trainable_parameter_comes_exactly_once(norm_weight_decay, frozen) -> None:
    model = _model(learn_weight_scale=True)
    if frozen:
        model.get_parameter(frozen).requires_grad_(False)
    groups = tr_param_groups(model, 0.5, 0.25, norm_weight_decay=norm_weight_decay)
    assert [g["name"] for g in groups if "quantizer" in g] == [
        name for name in ("2.weight", "4.weight") if name != frozen
    ]
    grouped = [name for group in groups for name in _names(model, group)]
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert all(group["params"] for group in groups)


def test_norms_get_their_own_decay() -> None:
    model = _model()
    rest, norms, *_ = tr_param_groups(model, 0.5, 0.25, norm_weight_decay=0.0)
    assert sorted(_names(model, norms)) == ["1.bias", "1.weight", "3.bias", "3.weight"]
    assert (norms["lr"], norms["weight_decay"]) == (0.5, 0.0)
    assert sorted(_names(model, rest)) == ["0.bias", "0.weight", "4.bias"]
    assert rest["weight_decay"] == 0.25


def test_quantizers_have_the_options_that_they_ask_for(monkeypatch) -> None:
    model = _model(learn_weight_scale=True)
    quantizer = model[2].weight_quantizer
    monkeypatch.setattr(quantizer, "param_options", lambda: {"lr_factor": 0.1, "weight_decay": 0.5})
    scales, own = sorted(
        quantizer_groups(model, 0.5, weight_decay=0.0), key=lambda g: g["weight_decay"]
    )
    assert _names(model, own) == ["2.weight_quantizer.scale"]
    assert (own["lr"], own["weight_decay"]) == (0.05, 0.5)
    assert "2.weight_quantizer.scale" not in _names(model, scales)
    assert (scales["lr"], scales["weight_decay"]) == (0.5, 0.0)


def test_quantized_weights_in_an_ordinary_group_are_refused() -> None:
    model = _model()
    for broken in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)).double()):
        with pytest.raises(ConfigError, match=r"^params=.*: must be groups made by tr_param_grou"):
            SGDT(broken.parameters(), lr=0.1, total_steps=1)
    SGDT(model[0].parameters(), lr=0.1, total_steps=1)  # in full precision


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": []}, "^w: params=0: must be one"),
        ({"params": 2 * [nn.Parameter(torch.zeros(3))]}, "^w: params=2: must be one"),
        ({"quantizer": build_quantizer("fixed_grid", 2, signed=True)}, "^learn_weight_scale=True"),
    ],
)
def test_groups_that_cannot_be_scheduled_are_refused(change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SGDT([{**tr_group(torch.randn(3)), **change}], lr=0.1, total_steps=1)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("w", {"differentiable": True}, "^differentiable=True: must be False"),
        ("ww", {}, "^name='w': must be another name in each TR group"),
        ("ab", {"tr_granularity": "model"}, r"^b: lr=2\.0: must be that of 'a', 1\.0"),
    ],
)
def test_groups_that_do_not_go_together_are_refused(names, options, message) -> None:
    groups = [{**tr_group(torch.zeros(3), name=n), "lr": 1.0 + i} for i, n in enumerate(names)]
    with pytest.raises(ConfigError, match=message):
        SGDT(groups, lr=0.1, total_steps=1, **options)


def test_without_quantized_weights_it_says_once_that_it_is_plain(caplog) -> None:
    optimizer = SGDT(nn.Linear(2, 2).parameters(), lr=0.1, total_steps=3)
    optimizer.step(), optimizer.step()
    assert len(caplog.messages) == 1
    assert "SGDT has no quantized weights, so it is plain SGD" in caplog.text


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_registry_makes_every_optimizer(name: str) -> None:
    groups = tr_param_groups(_model(), 0.5, 0.25)
    transition = {**config_defaults(), "update": "pi", "momentum": -1.0}
    arguments = {"momentum": 0.75, "nesterov": True, "betas": (0.5, 0.25)}
    optimizer = make_optimizer(
        name, groups, total_steps=7, transition=transition, arguments=arguments, lr=0.5
    )
    scheduled = name.endswith("T")
    assert type(optimizer).__name__ == name
    assert isinstance(optimizer, torch_class(optimizer))
    assert isinstance(optimizer, TransitionScheduled) == scheduled
    for key in ("momentum", "nesterov", "betas"):
        if key in OPTIMIZERS[name].arguments:
            assert optimizer.param_groups[0][key] == arguments[key]
    assert not scheduled or (optimizer._tr.update, optimizer._tr.momentum) == ("pi", None)


def test_the_registry_refuses_what_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer='SGTD': .*'SGDT'\]; did you mean"):
        make_optimizer("SGTD", [], total_steps=1, transition={}, arguments={})


def test_plain_model_gives_one_group() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    (group,) = tr_param_groups(model, 0.5, 0.25)
    assert group["params"] == list(model.parameters())
    assert quantized_weight_groups(model) == quantizer_groups(model, 0.5) == []


def test_a_layer_used_twice_has_one_group_and_one_count_per_step() -> None:
    head = nn.Linear(6, 6)
    model = nn.Sequential(head, nn.ReLU(), head, nn.ReLU(), nn.Linear(6, 4))
    quantize_model(model, QuantConfig(signed_input=True))
    set_scales(model, lambda: loss(model, 0))
    optimizer = SGDT(tr_param_groups(model, 0.1), lr=0.1, total_steps=3)
    train(model, optimizer, range(3))
    assert [group["name"] for group in tr_groups(optimizer)] == ["0.weight", "4.weight"]
    assert [group["tr_updates"] for group in tr_groups(optimizer)] == [3, 3]


def test_weight_with_two_quantizers_raises() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    quantize_model(model, QuantConfig())
    with pytest.raises(ValueError, match="'1': shares its weight with '0'"):
        tr_param_groups(model, 0.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("weight_decay", -0.1),
        ("norm_weight_decay", -0.1),
        ("scale_lr_factor", -0.1),
        ("quant_weight_lr_factor", -0.1),
        ("lr", float("inf")),
    ],
)
def test_number_out_of_range_raises(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{key}={value}: must "):
        tr_param_groups(_model(), **{"lr": 0.1, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", float("nan")), ("momentum", 1.5), ("weight_decay", float("inf"))],
)
def test_an_option_that_no_run_survives_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}={value}: must be "):
        SGDT([tr_group(torch.randn(3))], **{"lr": 0.1, key: value}, total_steps=1)


def test_without_transition_serves_the_torch_optimizer() -> None:
    groups = tr_param_groups(_model(), 0.5, 0.25)
    optimizer = torch.optim.SGD(without_transition(groups))
    for plain, group in zip(optimizer.param_groups, groups, strict=True):
        assert "quantizer" not in plain
        assert all(plain[key] == value for key, value in group.items() if key != "quantizer")
