"""Attachment of methods to any training loop, through hooks of the torch optimizer's step.

The order within an update: read the codes, edit the gradients, clip them; the optimizer's own step
(with TR scheduling: the guard against NaN, the controllers, the update); `Quantizer.end_update`;
count the changes of codes; the methods, by their `order`.

Only the outermost step that makes an update counts: a subclass whose ``step`` calls its parent's
fires torch's hooks twice, and a step that a GradScaler or the optimizer's own guard skips is no
update.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tr_det.core.codes import CodeBook
from tr_det.core.errors import ConfigError, check
from tr_det.core.methods.base import Batches, Method, Run, build_method
from tr_det.core.methods.compatible import check_compatible
from tr_det.core.nn.calibrate import is_calibrated, set_scales
from tr_det.core.nn.convert import quantized_layers
from tr_det.core.quantizers import Quantizer
from tr_det.core.quantizers.pool import over_processes

KEY = "tr_det"
"""Key of the methods' state in the optimizer's state dict."""

Clip = Callable[[list[Tensor]], Any]


def attach(
    methods: Iterable[Method | str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    *,
    clip: Clip | None = None,
    batches: Batches | None = None,
    around_calibration: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Attached:
    """Attach methods to a training loop; quantizers that adapt in training do so from now on.

    The first forward in training sets the missing scales from its batch (`set_scales`), under the
    same autocast.

    Args:
        methods: names or objects; may be empty.
        model: before or after it is wrapped by DistributedDataParallel.
        optimizer: of the model; its state dict holds the methods' state under a key of its own.
        total_steps: updates of the whole run.
        clip: called with the parameters that have gradients, after methods have edited those.
        batches: returns functions that each run the model's forward on one training batch, for
            methods that need data before an evaluation.
        around_calibration: a context for the calibrating forward, e.g. to keep its numbers out of
            a log.

    Returns:
        The handle; evaluations run within `Attached.evaluating`.

    Raises:
        ConfigError: a method is unknown or cannot work on this model, or the optimizer already has
            methods.

    >>> from tr_det.core import QuantConfig, attach, quantize_model
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    >>> _ = quantize_model(model, QuantConfig())
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> attached = attach(["tracker"], model, optimizer, total_steps=1)
    >>> model(torch.randn(8, 4).relu()).sum().backward(); optimizer.step()
    >>> attached.step
    1
    """
    attached = Attached(_unwrapped(model), optimizer, total_steps, clip, batches)
    built = [build_method(method) if isinstance(method, str) else method for method in methods]
    for method in sorted(built, key=lambda method: method.order):  # later ones need the first
        attached.add(method)
    attached.start(optimizer)
    _calibrate_at_first_forward(attached.model, around_calibration)
    return attached


class Attached:
    """The methods of a model and its optimizer; made by `attach`.

    Attributes:
        methods: in the order in which they act.
        codes: of the quantized weights.
        step: number of updates so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        clip: Clip | None,
        batches: Batches | None,
    ) -> None:
        new, allowed = KEY not in vars(optimizer), "one that was not passed to attach before"
        check("optimizer", type(optimizer).__name__, new, allowed)
        self.model, self.total_steps, self.step = model, total_steps, 0
        self.codes = _code_book(model, optimizer)
        self._clip = clip
        self._outermost: FrameType | None = None
        self._reads_codes = False
        self._quantizers = _adapting(model)
        self._anneal()
        for module in model.modules():
            if isinstance(module, Quantizer):
                module.attached = True
        self.methods: list[Method] = []
        self._run = Run(
            model, optimizer, self.codes, total_steps, self.methods, self._find, batches
        )

    def start(self, optimizer: torch.optim.Optimizer) -> None:
        """Register the hooks."""
        # A fused torch optimizer gets scaled gradients and skips updates inside step(). Methods
        # need unscaled gradients, and a skipped update must not call step().
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)
        vars(optimizer)[KEY] = self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Turn the model into the one to evaluate and store, e.g. its average; then undo it."""
        with self.codes.undisturbed(), ExitStack() as stack:
            for method in self.methods:
                stack.enter_context(method.evaluating())
            yield

    @property
    def changes_evaluation(self) -> bool:
        """Whether the model within `evaluating` differs from the one in checkpoints."""
        return any(method.changes_evaluation for method in self.methods)

    def add(self, method: Method) -> None:
        """Check a method and set it up."""
        is_new = type(method) not in map(type, self.methods)
        check("methods", name_of(method), is_new, "named once")
        check_compatible(name_of(method), method, self._run)
        method.setup(self._run)
        self.methods.append(method)
        self.methods.sort(key=lambda method: method.order)

    def _find(self, name: str) -> Method:
        for method in self.methods:
            if name_of(method) == name:
                return method
        method = build_method(name)
        self.add(method)
        return method

    # ---- an update ----

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        frame = sys._getframe(1)
        # A step that raised has left its frame here; only one that called this one still runs.
        if self._outermost is not None and _is_caller(self._outermost, frame):
            return
        self._outermost = frame
        edits = self._clip is not None or any(method.edits_gradients for method in self.methods)
        closure = (args[1] if len(args) > 1 else kwargs.get("closure")) is not None
        if edits and closure:
            raise ConfigError(
                "closure", "...", "None where gradients are clipped or edited: it is called later"
            )
        reads = [method.reads(self.step) for method in self.methods]  # calls every method
        self._reads_codes = any(reads) or self.codes.on_finish is not None
        if self._reads_codes:
            weights = self.codes.weights()
            # A closure computes the gradients later: any weight may get one.
            names = [name for name, (w, _) in weights.items() if closure or w.grad is not None]
            self.codes.begin(names, keep_previous=True)
        for method in self.methods:
            method.edit_gradients()
        if self._clip is not None:
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            self._clip([p for p in parameters if p.grad is not None])

    def _after(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if sys._getframe(1) is not self._outermost:
            return
        self._outermost = None
        if not getattr(optimizer, "made_update", True):
            return
        with torch.no_grad():
            if self._reads_codes:
                self.codes.moved()
            self._end_update()
            updates = self.codes.finish() if self._reads_codes else {}
            for method in self.methods:
                method.after_update(self.step, updates)
        self.step += 1

    def _end_update(self) -> None:
        """Update the quantizers that adapt, with the statistics of all processes."""
        seen = [q.seen for q, _ in self._quantizers if q.seen is not None]
        if seen and dist.is_available() and dist.is_initialized():
            pooled = over_processes(torch.cat(seen), "max")
            parts = torch.split(pooled, [len(s) for s in seen])
            torch._foreach_copy_(seen, list(parts))
        for quantizer, weight in self._quantizers:
            quantizer.end_update(self.step + 1, self.total_steps, weight)
            quantizer.anneal(self.step + 1, self.total_steps)

    def _anneal(self) -> None:
        for quantizer, _ in self._quantizers:
            quantizer.anneal(self.step, self.total_steps)

    # ---- checkpoints ----

    def _save(self, optimizer: Any, state: dict[str, Any]) -> None:
        own: dict[str, Any] = {
            "step": self.step,
            "methods": {name_of(method): method.state_dict() for method in self._saved()},
        }
        if any(method.changes_codes for method in self.methods):
            own["codes"] = self.codes.state_dict()
        state[KEY] = own

    def _load(self, optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
        state = dict(state)
        own = state.pop(KEY, {"step": 0, "methods": {}})
        stored, present = sorted(own["methods"]), sorted(map(name_of, self._saved()))
        if stored != present:
            raise ValueError(
                f"optimizer state has the methods {stored}, this run has {present}; resume with "
                "the methods that the run was started with"
            )
        self.step = own["step"]
        for method in self._saved():
            method.load_state_dict(own["methods"][name_of(method)])
        self.codes.load_state_dict(own.get("codes", {}))
        self._anneal()
        return state

    def _saved(self) -> list[Method]:
        """Return the methods that have a state to resume; those that only log have none."""
        return [method for method in self.methods if method.is_part_of_run]


def name_of(method: Method) -> str:
    """Return the name of a method, which is that of its file."""
    return type(method).__module__.rpartition(".")[2]


def _unwrapped(model: nn.Module) -> nn.Module:
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model


def _code_book(model: nn.Module, optimizer: torch.optim.Optimizer) -> CodeBook:
    """Return the optimizer's own code book, or a new one of the weights that it updates."""
    book = getattr(optimizer, "codes", None)
    if isinstance(book, CodeBook):
        return book
    book = CodeBook()
    updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, layer in quantized_layers(model):
        if layer.weight_quantizer is not None and id(layer.weight) in updated:
            updated.discard(id(layer.weight))  # a weight that layers share counts once
            book.add(f"{name}.weight", layer.weight, layer.weight_quantizer)
    return book


def _adapting(model: nn.Module) -> list[tuple[Quantizer, Tensor | None]]:
    """Return the quantizers that adapt in training, weight quantizers with their weights."""
    found: list[tuple[Quantizer | None, Tensor | None]] = []
    for _, layer in quantized_layers(model):
        found += [(layer.weight_quantizer, layer.weight), (layer.input_quantizer, None)]
    return [(q, weight) for q, weight in found if q is not None and q.adapts]


def _is_caller(frame: FrameType, of: FrameType | None) -> bool:
    while of is not None and of is not frame:
        of = of.f_back
    return of is frame


def _calibrate_at_first_forward(
    model: nn.Module, around: Callable[[], AbstractContextManager[Any]]
) -> None:
    def calibrate(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not model.training:
            return
        handle.remove()
        if not is_calibrated(model):
            with around():
                set_scales(model, lambda: model.forward(*args, **kwargs))

    handle = model.register_forward_pre_hook(calibrate, with_kwargs=True)
