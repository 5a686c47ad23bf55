"""The base class of methods, their registry, and the run that a method is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tr_det.core.codes import CodeBook, Update
from tr_det.core.registry import Registry

Batches = Callable[[], Iterable[Callable[[], Any]]]
"""Returns functions that each run the unwrapped model's forward on one training batch.

DistributedDataParallel's own forward would overwrite statistics by those of the first process.
"""


@dataclass(frozen=True)
class Run:
    """The training run that a method is attached to.

    Attributes:
        model: the unwrapped model.
        optimizer: of the model.
        codes: of its quantized weights.
        total_steps: updates of the whole run.
        methods: all attached methods.
        find: returns the attached method of a name; attaches it first if it is not yet.
        batches: training data, or None if the caller of `attach` gave none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    codes: CodeBook
    total_steps: int
    methods: list[Method]
    find: Callable[[str], Method]
    batches: Batches | None = None


class Method:
    """A method that accompanies training; every hook is optional.

    Attributes:
        needs: names of `compatible.NEEDS` that the run must meet.
        order: order of the methods after an update: 0 observes, 1 changes codes, 2 averages, 3
            prepares evaluations or logs.
        edits_gradients: whether it has `edit_gradients`; then closures are refused.
        changes_codes: whether it holds weights; then checkpoints have the codes.
        is_part_of_run: whether it changes the run; then checkpoints can be resumed only with it.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[int] = 0
    edits_gradients: ClassVar[bool] = False
    changes_codes: ClassVar[bool] = False
    is_part_of_run: ClassVar[bool] = True

    def setup(self, run: Run) -> None:
        """Prepare; called once, before the first update."""

    def reads(self, step: int) -> bool:
        """Return whether `after_update` needs the changes of codes by update ``step`` (0-based)."""
        return False

    def edit_gradients(self) -> None:
        """Change the unscaled gradients, once per update, after all-reduce and before clipping."""

    def after_update(self, step: int, updates: Mapping[str, Update]) -> None:
        """Act after an update; gradients are off.

        Args:
            step: 0-based index of the update.
            updates: weight name -> update, for weights that had a gradient; empty if no method
                `reads` this update.
        """

    def evaluating(self) -> AbstractContextManager[Any]:
        """Return a context in which the model is the one to evaluate and store."""
        return nullcontext()

    @property
    def changes_evaluation(self) -> bool:
        """Whether `evaluating` changes the model; then the evaluated model is stored as well."""
        return type(self).evaluating is not Method.evaluating

    def scalars(self) -> dict[str, Tensor]:
        """Return numbers for the log: name -> 0-d tensor, without synchronizing the device."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint; called after `setup`."""


METHODS: Registry[Method] = Registry("method")
"""File name -> method class; new files in this folder are found automatically."""


def build_method(name: str, **options: Any) -> Method:
    """Build a method by the name of its file.

    Raises:
        ConfigError: an unknown name or option (near names are suggested), or a bad value.
    """
    return METHODS.build(name, **options)
