"""Configs from YAML files and ``KEY VALUE`` pairs; mistakes raise ValueError."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.core.errors import ConfigError, check
from tr_det.runtime.configs import config_files, overlaid, parse

_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a string"),
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    dict: ((dict,), "a mapping"),
    tuple: ((list, tuple), "a list"),
}
"""Type of a key -> types of values that it takes, and their name; OmegaConf would convert more."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ClassifierConfig:
    """Return the config of a file and ``KEY VALUE`` pairs, with every name filled in.

    Args:
        path: a YAML file.
        overrides: dotted keys, each followed by its value in YAML.

    Raises:
        ValueError: an unknown key, a key without a value, a value of another type or out of range.
        OSError: no such file.
    """
    tree = _read(Path(path))
    for option in overrides:
        if option.startswith("--"):
            raise ValueError(f"{option}: must come before the KEY VALUE pairs")
    if len(overrides) % 2:
        raise ValueError(f"{overrides[-1]}: a key without a value; must be KEY VALUE pairs")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            if not isinstance(node.get(section), dict):
                node[section] = {}
            node = node[section]
        node[name] = _value(key, text)
    config: ClassifierConfig = from_tree(ClassifierConfig, tree)
    given, iterations = overrides[::2], config.solver.iterations
    used = "solver.epochs" not in given or "solver.iterations" in given or not iterations
    allowed = f"given with solver.iterations 0, as the config sets it to {iterations}"
    allowed += ", which takes precedence"
    check("solver.epochs", config.solver.epochs, used, allowed)
    if not config.run.output_dir:
        name = f"{Path(path).stem}_{config.quant.bits.lower()}".replace("_fp_fp", "_fp")
        folder = Path("output/classification") / Path(path).resolve().parent.name / name
        run = dataclasses.replace(config.run, output_dir=str(folder))
        config = dataclasses.replace(config, run=run)
    return config


def from_tree(section: type, tree: Any) -> Any:
    """Return a config made of nested mappings.

    Raises:
        ValueError: an unknown key, or a value of another type or out of range.
    """
    check("config", tree, isinstance(tree, dict), "a mapping of keys")
    config = OmegaConf.structured(section)
    # Frozen dataclasses become read-only configs.
    for node in (config, *config.values()):
        OmegaConf.set_readonly(node, False)
    for key, part in tree.items():
        if key in config:
            check(key, part, isinstance(part, dict), "a mapping")
            for name, value in part.items():
                _check_type(f"{key}.{name}", value)
    try:
        return OmegaConf.to_object(OmegaConf.merge(config, tree))
    except ConfigKeyError as error:
        parent, dot, key = str(error.full_key).partition(".")
        if not dot or error.full_key in tree:  # a name may have a dot in it
            parent, key = "", str(error.full_key)
        known = list(OmegaConf.select(config, parent) if parent else config)
        near = difflib.get_close_matches(key, known, 1) or known
        hint = "did you mean" if len(near) == 1 else "must be one of"
        names = ", ".join(f"{parent}.{name}".lstrip(".") for name in near)
        if key in ("MODEL", "SOLVER", "DATASETS") and not parent:
            hint, names = "a detector's config is", "for tools/train_net.py"
        raise ValueError(f"{error.full_key}: unknown key; {hint} {names}") from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{error.full_key}={error.value!r}: {reason}") from None


def to_yaml(config: ClassifierConfig) -> str:
    """Return the config as a file that `load_config` reads."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_tree(config: ClassifierConfig) -> dict[str, Any]:
    """Return the config as nested dicts, of what YAML knows."""
    tree: Any = OmegaConf.to_container(OmegaConf.structured(config))
    return tree


def _check_type(key: str, value: Any) -> None:
    """Raise ConfigError for a value of another type than the key's, or in OmegaConf's notation."""
    kind = _kind(key)
    if kind in _KINDS:
        types, allowed = _KINDS[kind]
        check(key, value, type(value) in types, allowed)
    if kind is tuple:
        types, item = _KINDS[get_args(_hint(key))[0]]
        check(key, value, all(type(inner) in types for inner in value), f"a list; each: {item}")
    _check_text(key, value)


def _check_text(key: str, value: Any) -> None:
    """Raise ConfigError for OmegaConf's notation in a value."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        _check_text(f"{key}.{name}", inner)
    for inner in value if isinstance(value, list) else ():
        _check_text(key, inner)
    plain = not isinstance(value, str) or ("${" not in value and value != "???")
    check(key, value, plain, "a value without ${ and ???")


def _kind(key: str) -> Any:
    """Return the type of ``section.name`` without that of its items; None for an unknown key."""
    return get_origin(_hint(key)) or _hint(key)


def _hint(key: str) -> Any:
    section, _, name = key.partition(".")
    return get_type_hints(get_type_hints(ClassifierConfig).get(section, object)).get(name)


def _read(path: Path) -> dict[str, Any]:
    """Return a file's keys over those of the files it builds on; later ones win."""
    tree: dict[str, Any] = {}
    for file, own in reversed([*config_files(path)]):
        model = own.get("model")
        if isinstance(model, dict) and model.get("pretraining"):
            _check_type("model.pretraining", model["pretraining"])
            # Whole, as the run's own config.yaml is in another folder.
            model["pretraining"] = str((file.parent / model["pretraining"]).resolve())
        for section, part in own.items():
            for name, value in part.items() if isinstance(part, dict) else ():
                _check_type(f"{section}.{name}", value)
        tree = overlaid(own, tree)
    return tree


def _value(key: str, text: str) -> Any:
    """Return a value written in YAML; a text is taken as it is, but for quotes around it."""
    if _kind(key) is str:
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
        return text[1:-1] if quoted else text
    try:
        return parse(text) if text else ""
    except ValueError:
        raise ConfigError(key, text, "valid YAML") from None
