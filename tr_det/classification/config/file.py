"""Configs from YAML files and ``KEY VALUE`` pairs; what is wrong with them is a ValueError."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.core.errors import ConfigError, check

BASE = "_BASE_"
"""Key of the files that a file builds on: a path or a list of them, relative to its folder."""

Tree = dict[str, Any]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ClassifierConfig:
    """Return the config of a file and ``KEY VALUE`` pairs, with every name filled in.

    Args:
        path: a YAML file.
        overrides: dotted keys, each followed by its value in YAML's notation.

    Raises:
        ValueError: an unknown key, a key without value, a value of another type or out of range.
        OSError: no such file.
    """
    tree = _read(Path(path))
    for option in overrides:
        if option.startswith("--"):
            raise ValueError(f"{option}: must come before the KEY VALUE pairs")
    if len(overrides) % 2:
        raise ValueError(f"{overrides[-1]}: a key without value; must be KEY VALUE pairs")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        _put(tree, key, _yaml(text, key))
    config: ClassifierConfig = from_tree(ClassifierConfig, tree)
    given, solver = overrides[::2], config.solver
    heard = "solver.epochs" not in given or "solver.iterations" in given or not solver.iterations
    allowed = f"given with solver.iterations 0, as the config has {solver.iterations}, which counts"
    check("solver.epochs", solver.epochs, heard, allowed)
    if not config.run.output_dir:
        name = f"{Path(path).stem}_{config.quant.bits.lower()}".replace("_fp_fp", "_fp")
        folder = Path("output/classification") / Path(path).resolve().parent.name / name
        run = dataclasses.replace(config.run, output_dir=str(folder))
        config = dataclasses.replace(config, run=run)
    return config


def from_tree(section: type, tree: Any, prefix: str = "") -> Any:
    """Return a config section made of nested dicts."""
    check(prefix.rstrip("."), tree, isinstance(tree, dict), "a mapping of keys")
    kinds = typing.get_type_hints(section)
    values = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in kinds:
            raise ValueError(f"{name}: unknown key; {_nearest(key, kinds, prefix)}")
        if dataclasses.is_dataclass(kinds[key]):
            values[key] = from_tree(typing.cast(type, kinds[key]), value, f"{name}.")
        else:
            values[key] = _converted(name, value, kinds[key])
    return section(**values)


def to_yaml(config: ClassifierConfig) -> str:
    """Return the config as a file that `load_config` reads."""
    return yaml.safe_dump(to_tree(config), sort_keys=False)


def to_tree(config: ClassifierConfig) -> Tree:
    """Return the config as nested dicts, of what YAML knows."""
    tree = dataclasses.asdict(config)
    for section in tree.values():
        for key, value in section.items():
            section[key] = list(value) if isinstance(value, tuple) else value
    return tree


def _read(path: Path) -> Tree:
    """Return a file's keys over those of the files it builds on; later ones win."""
    if not path.is_file():
        raise FileNotFoundError(f"config {path}: no such file")
    own = yaml.load(path.read_text(), Loader=_Loader) or {}
    check(str(path), own, isinstance(own, dict), "a mapping of keys")
    bases = own.pop(BASE, [])
    tree: Tree = {}
    for base in [bases] if isinstance(bases, str) else bases:
        _merge(tree, _read(path.parent / base))
    pretraining = (own.get("model") or {}).get("pretraining")
    if isinstance(pretraining, str) and pretraining:
        own["model"]["pretraining"] = str(path.parent / pretraining)
    _merge(tree, own)
    return tree


def _merge(tree: Tree, over: Tree) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _put(tree: Tree, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
        check(key, value, isinstance(tree, dict), "a key of a section")
    tree[last] = value


def _converted(name: str, value: Any, kind: Any) -> Any:
    """Return the value as the key's type; an integer will do where a number is wanted."""
    union = isinstance(kind, types.UnionType)
    kinds = typing.get_args(kind) if union else (kind,)
    origins = [typing.get_origin(k) or k for k in kinds]
    if float in origins and type(value) is int:
        return float(value)
    if tuple in origins and isinstance(value, list):
        item, _ = typing.get_args(kind)
        return tuple(_converted(f"{name}[{n}]", part, item) for n, part in enumerate(value))
    if type(value) not in origins:
        words = " or ".join(_WORDS[origin] for origin in origins)
        raise ConfigError(name, value, words)
    return value


_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "a list",
    dict: "a mapping",
}


def _nearest(key: str, known: Any, prefix: str) -> str:
    near = difflib.get_close_matches(str(key), list(known), 1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    return f"must be one of {[prefix + name for name in known]}"


def _yaml(text: str, key: str) -> Any:
    try:
        # Nothing is how a shell passes "".
        return "" if not text else yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(key, text, "a value in YAML's notation") from None


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everywhere else; YAML 1.1 wants 1.0e-3."""


_Loader.yaml_implicit_resolvers = {
    first: list(pairs) for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
