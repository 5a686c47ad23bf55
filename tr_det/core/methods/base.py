"""What every method is: something that accompanies training, once per update."""

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
"""Starts over with training batches: functions that each run the bare model's forward on one.

DistributedDataParallel's own forward would broadcast buffers over statistics that are measured.
"""


@dataclass(frozen=True)
class Run:
    """What a method is given at the start.

    Attributes:
        model: without DistributedDataParallel around it.
        optimizer: that updates it.
        codes: of its quantized weights.
        total_steps: updates of the whole run.
        methods: all that are attached.
        find: returns the attached method of a name, which is attached if it was not.
        batches: training data for methods that run the model on some; None: the caller gave none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    codes: CodeBook
    total_steps: int
    methods: list[Method]
    find: Callable[[str], Method]
    batches: Batches | None = None


class Method:
    """A method; every hook is optional.

    Attributes:
        needs: what the run must have for the method to make sense: names of `compatible.NEEDS`.
        order: methods act after an update in this order: 0 observes, 1 changes codes, 2 averages, 3
            measures what is evaluated, or logs.
        edits_gradients: whether `edit_gradients` does something; closures are refused then.
        changes_codes: whether it holds weights; then codes are kept in checkpoints.
        is_part_of_run: whether a run is another one without it; then a checkpoint goes on only
            with it.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[int] = 0
    edits_gradients: ClassVar[bool] = False
    changes_codes: ClassVar[bool] = False
    is_part_of_run: ClassVar[bool] = True

    def setup(self, run: Run) -> None:
        """Get to know the run; called once, before the first update."""

    def reads(self, step: int) -> bool:
        """Return whether `after_update` wants to know what update ``step`` (0-based) did."""
        return False

    def edit_gradients(self) -> None:
        """Change gradients before clipping: unscaled, once per update, after the all-reduce."""

    def after_update(self, step: int, updates: Mapping[str, Update]) -> None:
        """Follow an update, without gradient.

        Args:
            step: 0-based index of the update.
            updates: by name of the weight; only weights that had a gradient, and nothing unless
                `reads` or somebody else asked for this update.
        """

    def evaluating(self) -> AbstractContextManager[Any]:
        """Return a context in which the model is as it shall be evaluated and kept."""
        return nullcontext()

    @property
    def changes_evaluation(self) -> bool:
        """Whether `evaluating` changes the model: then what it evaluates is kept as well."""
        return type(self).evaluating is not Method.evaluating

    def scalars(self) -> dict[str, Tensor]:
        """Return numbers for the log: name -> 0-d tensor, where it is (nothing is synchronised)."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; called after `setup`."""


METHODS: Registry[Method] = Registry("method")
"""File name -> method class; a new file in this folder is found by itself."""


def build_method(name: str, **options: Any) -> Method:
    """Build a method by the name of its file.

    Raises:
        ConfigError: an unknown name or option (near names are suggested), or an option's value.
    """
    return METHODS.build(name, **options)
