"""The registry type of quantizers and methods: one class per file, named like the file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from tr_det.core.errors import ConfigError, check, check_among

C = TypeVar("C")


class Registry(dict[str, type[C]], Generic[C]):
    """Name -> class.

    Args:
        kind: the noun for messages, e.g. ``"quantizer"``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, cls: type[C]) -> type[C]:
        """Register a class under its file's name; a decorator.

        Raises:
            ConfigError: the name is taken.
        """
        name = cls.__module__.rpartition(".")[2]
        known = self.get(name)
        check(self.kind, name, known is None, f"a new name; {known!r} has it")
        self[name] = cls
        return cls

    def discover(self, package: str) -> None:
        """Import every module of a package, so that its classes are registered."""
        path = importlib.import_module(package).__path__
        for module in pkgutil.iter_modules(path, f"{package}."):
            importlib.import_module(module.name)

    def build(self, name: str, *args: Any, **options: Any) -> C:
        """Make an object by its name.

        Raises:
            ConfigError: an unknown name or option, or an option's value.
        """
        self.check(name, options)
        return self[name](*args, **options)

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Raise ConfigError unless the name is registered and has options of these names."""
        check_among(self.kind, name, self)
        allowed = self.options(name)
        for option, value in options.items():
            if option not in allowed:
                raise ConfigError(
                    option, value, f"left out: {name} has the options {sorted(allowed)}"
                )

    def options(self, name: str) -> dict[str, Any]:
        """Return a class's options (the keyword arguments of its constructors) and defaults."""
        found: dict[str, Any] = {}
        for cls in self[name].__mro__:
            if "__init__" in cls.__dict__:
                parameters = inspect.signature(cls.__dict__["__init__"]).parameters.values()
                for p in parameters:
                    if p.kind is inspect.Parameter.KEYWORD_ONLY:
                        found.setdefault(p.name, p.default)
                if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
                    break
        return found
