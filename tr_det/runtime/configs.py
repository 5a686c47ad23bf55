"""Config files of both sides: YAML that holds plain values, and the files that one builds on.

Nothing in a file is run, and what is wrong with one is a line that quotes nothing of it: ``_BASE_``
may name any file of the machine.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

BASE = "_BASE_"
"""Key of the files that a file builds on: a path or a list of them, relative to its folder."""

MOST_VALUES, DEEPEST = 100_000, 30
"""What no config reaches; one that contains itself, by an alias, has no end."""

_PLAIN = (str, bool, int, float, type(None))


class PlainLoader(yaml.SafeLoader):
    """YAML's reader of plain values; 1e-3 is a number, a date is text, no key comes twice."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys differ."""
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.items():
            if count > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} comes {count} times", node.start_mark
                )
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Add what a mapping merges by ``<<``; merges of merges multiply."""
        super().flatten_mapping(node)
        if len(node.value) > MOST_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"has more than {MOST_VALUES} values", node.start_mark
            )

    def refused(self, node: yaml.Node) -> Any:
        """Raise the error for a tag, by which YAML can name what is to be called."""
        raise yaml.constructor.ConstructorError(
            None, None, f"the tag {node.tag} is not allowed, only plain values are", node.start_mark
        )


PlainLoader.add_constructor(None, PlainLoader.refused)
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    [*"-+.0123456789"],
)


def parse(text: str, loader: type[yaml.SafeLoader] = PlainLoader) -> Any:
    """Return the plain value that a YAML text holds.

    Raises:
        ValueError: it is no YAML, holds other values than plain ones, or does not end.
    """
    try:
        value = yaml.load(text, loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from None
    except yaml.YAMLError:  # of its bytes
        raise ValueError("has characters that YAML does not allow") from None
    except RecursionError:
        raise ValueError(f"is nested more than {DEEPEST} deep") from None
    except (AttributeError, LookupError, ValueError):  # PyYAML's, of !!bool maybe and the like
        raise ValueError("has a value that its tag does not fit") from None
    _check_plain(value)
    return value


def _check_plain(value: Any) -> None:
    rest, seen = [(value, 0)], 0
    while rest:
        (part, depth), seen = rest.pop(), seen + 1
        if depth > DEEPEST:
            raise ValueError(f"is nested more than {DEEPEST} deep, or contains itself")
        if seen > MOST_VALUES:
            raise ValueError(f"has more than {MOST_VALUES} values")
        if isinstance(part, dict):
            if not all(isinstance(key, str) for key in part):
                raise ValueError("has a key that is no text")
            rest.extend((inner, depth + 1) for inner in part.values())
        elif isinstance(part, list):
            rest.extend((inner, depth + 1) for inner in part)
        elif not isinstance(part, _PLAIN):
            raise ValueError(f"has a value of the type {type(part).__name__}, which is not plain")


def config_files(
    path: str | os.PathLike[str],
    loader: type[yaml.SafeLoader] = PlainLoader,
    local: Callable[[str], str] = str,
    above: tuple[str, ...] = (),
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a config file and those that it builds on, each with its own keys.

    A file comes before those that it builds on, of which later ones come first: a value is that of
    the first file that has it.

    Args:
        path: of the file.
        loader: of its YAML.
        local: returns where a file is that has another address.
        above: files that build on it.

    Raises:
        ValueError: naming a file that is no mapping of keys, or that builds on itself.
        OSError: there is no such file.
    """
    address = os.fspath(path)
    file = Path(local(address))
    if not file.is_file():
        raise FileNotFoundError(f"config {address}: no such file")
    real = os.path.realpath(file)
    if real in above:
        raise ValueError(f"{address}: builds on itself by {BASE}")
    try:
        tree = parse(file.read_text(encoding="utf-8"), loader)
    except ValueError as error:
        is_text = not isinstance(error, UnicodeDecodeError)
        raise ValueError(f"{address}: {error if is_text else 'is no text'}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{address}: must be a mapping of keys")
    bases = tree.pop(BASE, [])
    names = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{address}: {BASE}={bases!r}: must be a file or a list of files")
    yield file, tree
    for name in reversed(names):
        name = os.path.expanduser(name)
        if "://" not in name:
            name = os.path.join(os.path.dirname(address), name)
        yield from config_files(name, loader, local, (*above, real))


def overlaid(tree: Any, base: Any) -> Any:
    """Return a value over another one: a mapping adds to a mapping, all else replaces.

    >>> overlaid({"a": {"b": 1}}, {"a": {"b": 0, "c": 2}, "d": 3})
    {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    if not (isinstance(tree, dict) and isinstance(base, dict)):
        return tree
    over = {
        key: overlaid(value, base[key]) if key in base else value for key, value in tree.items()
    }
    return {**base, **over}


def leaves(tree: Mapping[str, Any], joint: str = ".") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings under their joined keys; {} is a value.

    >>> dict(leaves({"a": {"b": 1}, "c": [2], "d": {}}))
    {'a.b': 1, 'c': [2], 'd': {}}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{key}{joint}{name}", item) for name, item in leaves(value, joint))
        else:
            yield key, value
