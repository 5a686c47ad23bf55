"""Sections of a study's file: every key is taken once, and what is left over is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from tr_det.core import ConfigError
from tr_det.core.errors import check, check_among

_NEEDED = object()
_NAMES = re.compile(r"\{([A-Za-z_]\w*)\}")


class Section:
    """A mapping of a study's file; errors inside it are named after it.

    As a context manager it ends with the keys that nobody took: they are unknown.

    Args:
        name: of the section, for errors.
        tree: what the file has there.
    """

    def __init__(self, name: str, tree: Any) -> None:
        self.name, self.tree = name, tree
        self._known: list[str] = []

    def __enter__(self) -> Section:
        check(self.name, self.tree, isinstance(self.tree, dict), "a mapping of keys")
        return self

    def take(self, key: str, read: Callable[[str, Any], Any], default: Any = _NEEDED) -> Any:
        """Return the value of a key.

        Args:
            key: in the section.
            read: called with the key and what the file has there; returns the value or raises.
            default: the value where the file has no such key.
        """
        self._known.append(key)
        if key in self.tree:
            return read(key, self.tree[key])
        if default is _NEEDED:
            raise ConfigError(key, None, "given")
        return default

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, ConfigError):
            raise error.renamed(f"{self.name}: {error.key}") from None
        if error is None:
            for key in self.tree:
                check_among(f"{self.name}: key", key, self._known)


def text_of(key: str, value: Any) -> str:
    """Return a text that is not empty."""
    check(key, value, isinstance(value, str) and bool(value), "a text")
    return str(value)


def settings_of(key: str, value: Any) -> dict[str, Any]:
    """Return settings: dotted config keys and their values, no mappings of keys."""
    allowed = "a mapping: dotted config key -> value, e.g. {SOLVER.BASE_LR: 0.01}"
    check(key, value, isinstance(value, dict), allowed)
    return dict(value)


def labels_of(given: Mapping[str, Any], axes: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return one label for some of the axes.

    Raises:
        ConfigError: no such axis or label.
    """
    for axis, label in given.items():
        check_among(key, axis, axes)
        check_among(f"{key}.{axis}", str(label), axes[axis])
    return {axis: str(label) for axis, label in given.items()}


def label_lists(
    given: Mapping[str, Any], axes: Mapping[str, Any], key: str
) -> dict[str, tuple[str, ...]]:
    """Return labels of some of the axes, of which one may be written without a list."""
    lists = {
        axis: tuple(map(str, labels)) if isinstance(labels, list) else (str(labels),)
        for axis, labels in given.items()
    }
    for axis, labels in lists.items():
        for label in labels:
            labels_of({axis: label}, axes, key)
    return lists


def hashable(values: Any) -> Any:
    """Return a value with tuples in place of lists."""
    return tuple(map(hashable, values)) if isinstance(values, list) else values


def listed(value: Any) -> Any:
    """Return a value with lists in place of tuples."""
    return [*map(listed, value)] if isinstance(value, tuple) else value


def with_names(settings: Mapping[str, Any], text_for: Callable[[str], str]) -> dict[str, Any]:
    """Return settings with other texts for the names in braces.

    >>> with_names({"a": ["x {fp}/y"], "b": 1}, str.upper)
    {'a': ['x FP/y'], 'b': 1}
    """

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return _NAMES.sub(lambda match: text_for(match[1]), value)
        if isinstance(value, list):
            return [replaced(item) for item in value]
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        return value

    return {key: replaced(value) for key, value in settings.items()}


def names_in(settings: Mapping[str, Any]) -> list[str]:
    """Return the names that stand in settings, each once.

    >>> names_in({"a": ["x {fp}/model.pth"], "b": "{other} {fp}"})
    ['fp', 'other']
    """
    found: dict[str, None] = {}
    with_names(settings, lambda name: found.setdefault(name) or "")
    return list(found)
