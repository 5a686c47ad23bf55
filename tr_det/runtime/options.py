"""Options of quantizers and methods as one writes them in a config: ``"name key=value ..."``."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from tr_det.core import ConfigError, Method, build_method


def parse_options(text: str, key: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of a text.

    Args:
        text: a name, then ``key=value`` pairs; values are Python literals, other words strings.
        key: of the config, for errors.

    Raises:
        ConfigError: the text is not of that form.

    >>> parse_options("freezing threshold=0.02 use_average=False", "SOLVER.METHODS")
    ('freezing', {'threshold': 0.02, 'use_average': False})
    """
    words = text.split() if isinstance(text, str) else []
    if not words or "=" in words[0]:
        raise ConfigError(key, text, "a name, then key=value pairs, e.g. 'tracker momentum=0.01'")
    return words[0], parse_pairs(words[1:], key)


def parse_pairs(words: Sequence[str], key: str) -> dict[str, Any]:
    """Return options from ``key=value`` words.

    Raises:
        ConfigError: a word is not of that form, or a key comes twice.

    >>> parse_pairs(["per_channel=True", "estimator=ewgs"], "MODEL.QUANT.WEIGHT_OPTIONS")
    {'per_channel': True, 'estimator': 'ewgs'}
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=") if isinstance(word, str) else ("", "", "")
        if not (name.isidentifier() and equals) or name in options:
            raise ConfigError(key, word, "key=value, each key once, e.g. 'per_channel=True'")
        options[name] = _literal(value)
    return options


def methods_from(texts: Sequence[str], key: str) -> list[Method]:
    """Return the methods that a config names with their options.

    Args:
        texts: as `parse_options` reads them.
        key: of the config, for errors.

    Raises:
        ConfigError: an unknown method or option, or an option's value.

    >>> methods_from(["weight_average decay=0.99"], "SOLVER.METHODS")[0].decay
    0.99
    """
    parsed = [parse_options(text, key) for text in texts]
    try:
        return [build_method(name, **options) for name, options in parsed]
    except ConfigError as error:
        raise under_methods_key(error, key) from None


def under_methods_key(error: ConfigError, key: str) -> ConfigError:
    """Return a method's error under the config's key, the option's name after it.

    >>> print(under_methods_key(ConfigError("threshold", 2, "in (0, 1)"), "SOLVER.METHODS"))
    SOLVER.METHODS: threshold=2: must be in (0, 1)
    """
    named = error.key in ("method", "methods")
    return error.renamed(key if named else f"{key}: {error.key}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return {"true": True, "false": False}.get(text, text)
