"""Reading a config from a file and a command line; what is wrong with them is a ValueError."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from tr_det.detection.config.checks import check_config, value_of
from tr_det.detection.config.keys import add_tr_det_config


def load_config(path: str | Path, pairs: Sequence[Any] = ()) -> CfgNode:
    """Return the checked config of a YAML file and the ``KEY VALUE`` pairs of a command line.

    Later pairs win; an integer will do where a number is wanted.

    Raises:
        ValueError: no such file, a LazyConfig, a file that is no mapping of keys or builds on
            itself, an unknown key, a key without value, a value of another type, or one that
            `check_config` refuses.
    """
    if str(path).endswith(".py"):
        raise ValueError(
            f"--config-file={path}: must be a YAML file; a LazyConfig is for Detectron2's "
            "lazyconfig_train_net.py"
        )
    cfg = get_cfg()
    add_tr_det_config(cfg)
    pairs = list(pairs)
    with _assertions_as_value_errors():
        _merge_file(cfg, str(path))
        for position, (key, text) in enumerate(zip(pairs[::2], pairs[1::2], strict=False)):
            value = CfgNode._decode_cfg_value(text)
            if type(value) is int and isinstance(value_of(cfg, key), float):
                pairs[2 * position + 1] = float(value)
        cfg.merge_from_list(pairs)
    check_config(cfg)
    return cfg


def _merge_file(cfg: CfgNode, path: str) -> None:
    try:
        cfg.merge_from_file(path)
    except RecursionError:
        raise ValueError(f"{path}: builds on itself by _BASE_") from None
    except (TypeError, AttributeError):
        allowed = "a mapping of keys, like each file that its _BASE_ names"
        raise ValueError(f"{path}: must be {allowed}") from None


@contextmanager
def _assertions_as_value_errors() -> Iterator[None]:
    """Give what yacs and Detectron2 raise about input one type."""
    try:
        yield
    except (KeyError, AssertionError) as error:
        raise ValueError(error.args[0] if error.args else type(error).__name__) from None
