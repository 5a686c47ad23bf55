"""From recorded ATen operations to nodes: what is known so far, and who converts what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tr_det.export.graph import INPUT, Node


class Conversion:
    """The nodes so far, and which values are known.

    Operations in place give their tensor a new value: whoever reads the tensor later, by whatever
    name, reads that one. Of a tensor that may share its memory with a view they are refused.

    Args:
        placeholders: tensor of each parameter, buffer and constant; None for the image.
    """

    def __init__(self, placeholders: Mapping[str, Tensor | None]) -> None:
        self.nodes: list[Node] = []
        self.constants = {name: t for name, t in placeholders.items() if t is not None}
        self._values = {name: INPUT for name, t in placeholders.items() if t is None}
        self._tensors: dict[str, str] = {}  # name of an operation -> the first one of its tensor
        self._viewed: set[str] = set()  # tensors that may share their memory with others

    def value(self, arg: Any) -> str:
        """Return the name of an argument's value."""
        value = self._values.get(self._tensor(arg))
        if value is None:
            raise ValueError(f"cannot be exported: {arg} is a constant where a value is expected")
        return value

    def _tensor(self, arg: Any) -> str:
        return self._tensors.get(arg.name, arg.name)

    @property
    def known(self) -> Collection[str]:
        """Names of the operations, and of the image, whose values there are."""
        return {*self._values, *self._tensors}

    def name(self, node: fx.Node, *nodes: Node) -> None:
        """Add nodes, of which the last one makes an operation's value."""
        self.nodes += nodes
        self._values[self._tensor(node)] = nodes[-1].output

    def emit(self, op: str, node: fx.Node, *inputs: Any, **attributes: Any) -> None:
        """Add one node for an operation."""
        names = tuple(self.value(arg) for arg in inputs)
        self.name(node, Node(op, names, value_of(node), attributes))

    def copy(self, node: fx.Node, arg: Any) -> None:
        """Let an operation's value be its argument's, as it is now."""
        self._values[self._tensor(node)] = self.value(arg)

    def alias(self, node: fx.Node, arg: Any) -> None:
        """Let an operation's result be the same tensor as its argument."""
        self._tensors[node.name] = self._tensor(arg)

    def convert(self, node: fx.Node) -> None:
        """Add what an operation becomes."""
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source is not None and is_in_place(node):
            tensor = self._tensor(source)
            if tensor not in self._values or tensor in self._viewed:
                raise ValueError(
                    f"cannot be exported: {node} changes {source} in place, which is a constant of "
                    "the model or has views; use the operation that returns a new tensor"
                )
            self.alias(node, source)
            CONVERTERS[node.target](self, node)
        else:
            CONVERTERS[node.target](self, node)
            if source is not None and node.target in VIEWS:
                self._viewed |= {self._tensor(source), self._tensor(node)}

    def folds(self, node: fx.Node) -> bool:
        """Compute an operation on constants alone; return whether it was one."""
        if not node.all_input_nodes or any(
            arg.name not in self.constants for arg in node.all_input_nodes
        ):
            return False
        if is_in_place(node):
            raise ValueError(
                f"cannot be exported: {node} changes {node.all_input_nodes[0]} of the model itself"
            )
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


def value_of(node: fx.Node) -> str:
    """Return the name of the value of an operation; no output of a model is called like this."""
    return f"/{node.name}"


Converter = Callable[[Conversion, fx.Node], None]
CONVERTERS: dict[Any, Converter] = {}
"""Overload of an ATen operation -> what converts it."""
VIEWS: set[Any] = set()
"""Overloads whose result may share its memory with their first argument."""


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


def same_size(one: Any, other: Any) -> bool:
    """Return whether two sizes are the same expression of the input's sizes.

    Torch itself would compare what they are for the example.
    """
    return str(one) == str(other)


def is_in_place(node: fx.Node) -> bool:
    """Return whether an operation changes an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def pair(numbers: Any, default: Sequence[int] | None = None) -> list[int]:
    """Return a setting for both dimensions; the default where it is empty."""
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    numbers = numbers or list(default or ())
    return numbers * 2 if len(numbers) == 1 else numbers
