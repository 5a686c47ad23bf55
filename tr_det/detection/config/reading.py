"""Reading a config from a file and a command line; what is wrong with them is a ValueError."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from tr_det.core.errors import ConfigError, check
from tr_det.core.transition.settings import config_value, knobs
from tr_det.detection.config.checks import check_config
from tr_det.detection.config.keys import add_tr_det_config
from tr_det.detection.config.timm_input import follow_timm_weights
from tr_det.detection.config.values import VALUES, check_values
from tr_det.detection.data.register import follow_register
from tr_det.runtime.configs import PlainLoader, config_files, overlaid

OCTAVES = "[[x,x*2**(1.0/3),x*2**(2.0/3)]forxin[32,64,128,256,512]]"
"""The one expression in the configs of Detectron2's zoo: the anchors of its Base-RetinaNet.yaml."""


_TR = "SOLVER.TR."
_KINDS: dict[Any, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    (list, tuple): "a list",
    object: "of the same type as its default",
}


class ZooLoader(PlainLoader):
    """Reads the zoo's configs, too, in which one value is a Python expression."""

    def octaves(self, node: yaml.Node) -> list[list[float]]:
        """Return the value of the expression that is known; no other one is evaluated."""
        (text,) = self.construct_sequence(node) if len(node.value) == 1 else ("",)
        if str(text).replace(" ", "") != OCTAVES:
            raise yaml.constructor.ConstructorError(
                None, None, "has a Python expression; write its value instead", node.start_mark
            )
        return [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)]


ZooLoader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", ZooLoader.octaves)


def load_config(path: str | Path, pairs: Sequence[Any] = ()) -> CfgNode:
    """Return the checked config of a YAML file and the ``KEY VALUE`` pairs of a command line.

    The datasets that it lists are registered.

    Pairs win over the file, later ones over earlier ones. An integer will do where a number is
    wanted, one value for a list of it, and in ``SOLVER.TR`` ``auto`` and ``None`` for the numbers
    that stand for them.

    Raises:
        ValueError: a LazyConfig, a file that is no mapping of keys with plain values or builds on
            itself, an unknown key, a key without value, a value of another type, or one that
            `check_config` refuses.
        OSError: there is no such file.
    """
    if str(path).endswith(".py"):
        raise ValueError(
            f"--config-file={path}: must be a YAML file; a LazyConfig is for Detectron2's "
            "lazyconfig_train_net.py"
        )
    if len(pairs) % 2:
        raise ValueError(f"{pairs[-1]}: a key without a value; must be KEY VALUE pairs")
    tree = read_tree(path)
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        for part in reversed(str(key).split(".")):
            value = {part: value}
        tree = overlaid(value, tree)
    cfg = get_cfg()
    version = cfg.VERSION
    add_tr_det_config(cfg)
    with _assertions_as_value_errors():
        cfg.merge_from_other_cfg(CfgNode(_fitted(tree, cfg)))
    check("VERSION", cfg.VERSION, version == cfg.VERSION, str(version))
    given = cfg.MODEL.LOAD_PROPOSALS
    check("MODEL.LOAD_PROPOSALS", given, given is False, "False; their files can hold code to run")
    check_values(cfg)  # which the next ones go by
    follow_register(cfg)
    follow_timm_weights(cfg)
    check_config(cfg)
    return cfg


def load_config_for_cpu(path: str | Path, pairs: Sequence[Any] = ()) -> CfgNode:
    """Return the config of a trained detector, to be built on a CPU and loaded.

    There may be no GPU here, and no file that its backbone's weights came from.
    """
    cfg = load_config(path, [*pairs, "MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"])
    cfg.MODEL.TIMM.WEIGHTS = ""
    return cfg


def read_tree(path: str | Path) -> dict[str, Any]:
    """Return what a YAML file and those that it builds on set; nothing in them is run.

    Raises:
        ValueError: naming a file that is no mapping of keys with plain values, or that builds on
            itself.
        OSError: there is no such file.
    """
    tree: dict[str, Any] = {}
    for _, own in reversed([*config_files(path, ZooLoader, PathManager.get_local_path)]):
        tree = overlaid(own, tree)
    return tree


def _fitted(tree: dict[str, Any], cfg: CfgNode, above: str = "") -> dict[str, Any]:
    """Return a tree for a config, with its values of the config's types.

    Raises:
        ValueError: there is no such key.
        ConfigError: a section has a single value, or a key a value of another type. Of the first
            yacs would print the whole section; None it takes for any key.
    """
    fitted = {}
    for key, given in tree.items():
        if key not in cfg and not cfg.is_new_allowed():
            near = difflib.get_close_matches(str(key).upper(), cfg, 1)
            hint = f"; did you mean {above}{near[0]}" if near else ""
            if not above and key in ("model", "quant", "data", "solver", "tr", "run"):
                hint += "; a classifier's config is for tools/train_classifier.py"
            raise ValueError(f"Non-existent key: {above}{key}{hint}")
        own = cfg.get(key)
        value = CfgNode._decode_cfg_value(given) if isinstance(given, str) else given
        if isinstance(own, CfgNode):
            check(above + key, given, isinstance(value, dict), "a mapping of keys")
            given = _fitted(value, own, f"{above}{key}.")
        elif own is not None:
            if above == _TR:
                value = config_value(key.lower(), value)
            given = _typed(above + key, given, value, own)
        fitted[key] = given
    return fitted


def _typed(key: str, given: Any, value: Any, own: Any) -> Any:
    """Return a value of the type that a key has, and yacs asks for."""
    if isinstance(own, float) and type(value) is int:
        return float(value)
    if isinstance(own, str) and isinstance(given, str):
        # A number may be a name. yacs reads the text once more.
        return repr(value if isinstance(value, str) else given)
    if isinstance(own, list | tuple):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            value = [value]
        fits = isinstance(value, list | tuple)
    else:
        fits = type(value) is type(own)
    if not fits:
        kind = next(words for types, words in _KINDS.items() if isinstance(own, types))
        known = VALUES[key].allowed if key in VALUES else kind
        knob = knobs().get(key.removeprefix(_TR).lower()) if key.startswith(_TR) else None
        known = known if knob is None else knob.rule()
        is_told = kind == known or isinstance(own, list | tuple)
        raise ConfigError(key, given, known if is_told else f"{kind}, {known}")
    return value


@contextmanager
def _assertions_as_value_errors() -> Iterator[None]:
    """Give what yacs and Detectron2 raise about input one type."""
    try:
        yield
    except (KeyError, AssertionError, OverflowError, RecursionError) as error:
        raise ValueError(error.args[0] if error.args else type(error).__name__) from None
