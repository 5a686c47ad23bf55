"""The settings are one table: what is said of one there shows up everywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tr_det
from tr_det.core import ConfigError, QuantConfig, quantize_model, tr_param_groups
from tr_det.core.optim import SGDT
from tr_det.core.transition import TransitionSettings
from tr_det.core.transition.settings import arguments_from, config_defaults, knobs, table

PACKAGE = Path(tr_det.__file__).parent
NEW_KNOB = '    cooldown: int = _knob(7, "Updates at rest", "from 0 to 9", lambda n: 0 <= n <= 9)\n'
AFTER = "    total_steps: int\n"


def in_a_copy(folder: Path, code: str) -> str:
    """Run code with a copy of the package that has one more line; return what it prints."""
    package = folder / "tr_det"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / "core/transition/settings.py"
    source = file.read_text()
    assert source.count(AFTER) == 1
    file.write_text(source.replace(AFTER, AFTER + NEW_KNOB))
    head = f"import tr_det; assert tr_det.__file__.startswith({str(folder)!r}), tr_det.__file__\n"
    run = subprocess.run(
        [sys.executable, "-c", head + code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_setting_added_in_one_file_reaches_optimizers_docs_and_the_classifier(tmp_path) -> None:
    in_a_copy(
        tmp_path,
        """
import dataclasses

import torch
from tr_det.classification.config.keys import TransitionConfig
from tr_det.core import SGDT, ConfigError
from tr_det.core.optim.registry import make_optimizer
from tr_det.core.transition.settings import config_defaults, table

parameters = [torch.nn.Parameter(torch.zeros(1))]
assert SGDT(parameters, lr=0.1, total_steps=9, tr_cooldown=3)._tr.cooldown == 3
try:
    SGDT(parameters, lr=0.1, total_steps=9, tr_cooldown=10)
except ConfigError as error:
    assert str(error) == "tr_cooldown=10: must be from 0 to 9"
else:
    raise AssertionError("not checked")
assert config_defaults()["cooldown"] == 7
assert "| `cooldown` | `7` | Updates at rest | from 0 to 9 |" in table().splitlines()
values = {**config_defaults(), "cooldown": 5}
made = make_optimizer("SGDT", parameters, total_steps=9, transition=values, arguments={
    "momentum": 0.9, "nesterov": False}, lr=0.1)
assert made._tr.cooldown == 5
assert TransitionConfig().cooldown == 7
assert dataclasses.replace(TransitionConfig(), cooldown=5).cooldown == 5
""",
    )


def test_a_setting_added_in_one_file_is_a_key_of_detectron2s_config(tmp_path) -> None:
    pytest.importorskip("detectron2")
    in_a_copy(
        tmp_path,
        """
from detectron2.config import get_cfg
from tr_det.detection.config.keys import add_tr_det_config

cfg = get_cfg()
add_tr_det_config(cfg)
assert cfg.SOLVER.TR.COOLDOWN == 7
cfg.merge_from_list(["SOLVER.TR.COOLDOWN", 5])
assert cfg.SOLVER.TR.COOLDOWN == 5
""",
    )


def test_a_configs_values_and_what_they_stand_for() -> None:
    """A key of a config has one type, so some numbers stand for a word or for None."""
    defaults = config_defaults()
    assert defaults.keys() == knobs().keys()
    assert all(isinstance(value, str | int | float) for value in defaults.values())
    settings = TransitionSettings(total_steps=9)
    for key, value in arguments_from(defaults).items():
        assert value == getattr(settings, key.removeprefix("tr_")), key
    said = arguments_from({**defaults, "factor": -1.0, "momentum": -1.0, "gain": 0.0})
    assert (said["tr_factor"], said["tr_momentum"], said["tr_gain"]) == ("auto", None, None)


def test_every_argument_of_the_table_is_taken_and_checked() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    quantize_model(model, QuantConfig())
    optimizer = SGDT(
        tr_param_groups(model, 0.1), lr=0.1, total_steps=9, **arguments_from(config_defaults())
    )
    assert vars(optimizer._tr) == vars(TransitionSettings(total_steps=9)) | {
        "_shape": optimizer._tr._shape
    }
    for name in knobs():
        with pytest.raises(ConfigError, match=rf"^tr_{name}=\[\]: must be "):
            TransitionSettings(total_steps=9, **{name: []})
    with pytest.raises(ConfigError, match=r"^tr_scales='sum': must be 'frozen' or 'by_weight'"):
        TransitionSettings(total_steps=9, scales="sum", signal="effective_step_size")


def test_the_docs_have_the_table() -> None:
    assert table() in (PACKAGE / "docs/tr_settings.md").read_text()
