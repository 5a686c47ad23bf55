"""From recorded ATen operations to nodes: what is known so far, and who converts what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tr_det.export.graph import Node


class Conversion:
    """The nodes so far, and which values are known.

    Args:
        placeholders: tensor of each parameter, buffer and constant; None for the image.
    """

    def __init__(self, placeholders: Mapping[str, Tensor | None]) -> None:
        self.nodes: list[Node] = []
        self.constants = {name: t for name, t in placeholders.items() if t is not None}
        self._names = {name: "images" for name, t in placeholders.items() if t is None}

    def value(self, arg: Any) -> str:
        """Return the name of an argument's value."""
        name = self._names.get(arg.name)
        if name is None:
            raise ValueError(f"cannot be exported: {arg} is a constant where a value is expected")
        return name

    @property
    def known(self) -> Collection[str]:
        """Names of the operations, and of the image, whose values there are."""
        return self._names.keys()

    def add(self, *nodes: Node) -> None:
        """Add nodes."""
        self.nodes += nodes
        for node in nodes:
            self._names[node.output] = node.output

    def emit(self, op: str, node: fx.Node, *inputs: Any, **attributes: Any) -> None:
        """Add one node for an operation."""
        names = tuple(self.value(arg) for arg in inputs)
        self.add(Node(op, names, node.name, attributes))

    def same(self, node: fx.Node, arg: Any) -> None:
        """Let an operation's value be its argument's."""
        self._names[node.name] = self.value(arg)

    def folds(self, node: fx.Node) -> bool:
        """Compute an operation on constants alone; return whether it was one."""
        if not node.all_input_nodes or any(
            arg.name not in self.constants for arg in node.all_input_nodes
        ):
            return False
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda arg: self.constants[arg.name]
        )
        with torch.no_grad():
            self.constants[node.name] = node.target(*args, **kwargs)  # type: ignore[operator]
        return True

    def constant(self, arg: Any) -> np.ndarray | None:
        """Return the numbers of a constant, None for None."""
        if arg is None:
            return None
        if arg.name not in self.constants:
            raise ValueError(f"cannot be exported: {arg}, which is computed, as a parameter")
        return self.constants[arg.name].cpu().numpy()

    def is_constant(self, arg: Any) -> bool:
        """Return whether an argument is a number or a constant."""
        return not isinstance(arg, fx.Node) or arg.name in self.constants


Converter = Callable[[Conversion, fx.Node], None]
CONVERTERS: dict[Any, Converter] = {}
"""Overload of an ATen operation -> what converts it."""


def converts(*targets: Any) -> Callable[[Converter], Converter]:
    """Register the function that follows for these operations."""

    def register(converter: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(targets, converter))
        return converter

    return register


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return an operation's arguments by name, with defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    found = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    found.update({a.name: given for a, given in zip(schema.arguments, node.args, strict=False)})
    return {**found, **node.kwargs}


def pair(numbers: Any, default: Sequence[int] | None = None) -> list[int]:
    """Return a setting for both dimensions; the default where it is empty."""
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    numbers = numbers or list(default or ())
    return numbers * 2 if len(numbers) == 1 else numbers
