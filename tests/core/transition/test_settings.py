"""The table of settings, and its agreement with optimizers, both configs and the docs."""

import dataclasses
from pathlib import Path

import pytest
import torch

import tr_det
from tr_det.classification.config.keys import TransitionConfig
from tr_det.core import SGDT, ConfigError
from tr_det.core.transition import TransitionSettings
from tr_det.core.transition.settings import arguments_from, config_defaults, knobs, table


def test_both_configs_have_the_table() -> None:
    assert {field.name for field in dataclasses.fields(TransitionConfig)} == set(knobs())
    config = pytest.importorskip("detectron2.config").get_cfg()
    from tr_det.detection import add_tr_det_config

    add_tr_det_config(config)
    shown = {key.lower(): value for key, value in config.SOLVER.TR.items()}
    assert shown == {**config_defaults(), "log_period": 20, "replay": "", "replay_as": "curve"}


def test_config_values_that_stand_for_a_word_or_none() -> None:
    """A key of a config has one type."""
    defaults = config_defaults()
    assert all(isinstance(value, str | int | float) for value in defaults.values())
    settings = TransitionSettings(total_steps=9)
    for key, value in arguments_from(defaults).items():
        assert value == getattr(settings, key.removeprefix("tr_")), key
    given = arguments_from({**defaults, "factor": -1.0, "momentum": -1.0, "gain": 0.0})
    assert (given["tr_factor"], given["tr_momentum"], given["tr_gain"]) == ("auto", None, None)


def test_every_setting_reaches_the_optimizer_and_is_checked() -> None:
    values = {"factor": 0.5, "momentum": 0.5, "warmup": 2, "final": 0.25, "gain": 2.0}
    values |= {"schedule": "linear", "update": "pi", "granularity": "model", "decay": "lr"}
    values |= {"signal": "effective_step_size", "scales": "by_weight", "nonfinite": "skip"}
    assert all(values[name] != default for name, default in config_defaults().items())
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = SGDT(parameters, lr=0.1, total_steps=9, **arguments_from(values))
    assert {name: getattr(optimizer._tr, name) for name in knobs()} == values
    for name in knobs():
        with pytest.raises(ConfigError, match=rf"^tr_{name}=\[\]: must be "):
            SGDT(parameters, lr=0.1, total_steps=9, **{f"tr_{name}": []})
    with pytest.raises(ConfigError, match=r"^tr_scales='sum': must be 'frozen' or 'by_weight'"):
        TransitionSettings(total_steps=9, scales="sum", signal="effective_step_size")
    with pytest.raises(
        ConfigError, match=r"^tr_factr=0.1: must be left out; there are .*tr_factor"
    ):
        SGDT(parameters, lr=0.1, total_steps=9, tr_factr=0.1)


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("factor", [0.0, -1e-3, 1.5, None, "automatic", float("nan")], r"in \(0, 1\], or 'auto'"),
        ("momentum", [1.0, -0.1, "x"], r"in \[0, 1\)"),
        ("gain", [-1.0, float("inf")], "finite and not negative"),
        ("final", [1.5], r"in \[0, 1\]"),
        ("warmup", [-1, 2.0, True, 9], "integer"),
        ("schedule", ["cosin"], "'cosine', 'linear', 'step', 'constant'"),
        ("update", ["additiv"], "'additive'"),
        ("signal", ["rate"], "'transition_rate'"),
        ("granularity", ["channel"], "'layer', 'model'"),
        ("decay", ["none"], "'talr', 'lr'"),
        ("nonfinite", ["hope"], "'refuse', 'skip'"),
    ],
)
def test_values_out_of_range_are_refused(name, values, allowed) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"^tr_{name}={value!r}: must be .*{allowed}"):
            TransitionSettings(total_steps=9, **{name: value})


def test_the_docs_have_the_table() -> None:
    assert table() in (Path(tr_det.__file__).parent / "docs/tr_settings.md").read_text()
