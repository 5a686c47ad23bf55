"""The codes of all quantized weights at the last update, and the changes of each update.

They have one owner, made by the TR-scheduled optimizer or else by `tr_det.core.attach`. TR
controllers, telemetry, oscillation trackers and freezing read its `Update`; nothing else stores or
compares codes.

Where a weight or a quantizer's parameter changes between two updates (edited, loaded, averaged),
codes are computed again and no transition is counted. Version counters and addresses of the tensors
show such a change. One through ``weight.data`` alters neither: on the host a hash of a few elements
shows it, where the C kernels are built; on a GPU the kernel that moves the weights first compares
the codes with the weights that it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from tr_det.core.ops import fingerprint
from tr_det.core.quantizers import FREE, Quantizer


class Update(NamedTuple):
    """What one update did to a quantized weight.

    Attributes:
        codes: integer codes after it, in the weight's shape; owned by the book, read only.
        previous: codes before it, where they were kept.
        by_weight: number of codes that the weight's move changed at the quantizer's parameters
            before the update, without held ones; 0-d integer.
        by_scale: number of codes that the move of a trained scale or a refit of the levels changed
            after that, likewise; None where the quantizer stayed the same.
        free: number of weights that are not held: 0-d on the device where some are held.
        quantizer: the weight's.
        parameters: the quantizer's trained or refitted tensors before the update, by name.
    """

    codes: Tensor
    previous: Tensor | None
    by_weight: Tensor
    by_scale: Tensor | None
    free: int | Tensor
    quantizer: Quantizer
    parameters: Mapping[str, Tensor]

    def rate(self) -> Tensor:
        """Return the share of free codes that the weight's move changed, Eq. 5; 0-d float32."""
        return self._share(self.by_weight)

    def rate_by_scale(self) -> Tensor:
        """Return the share of free codes that the quantizer's change altered; 0-d float32."""
        if self.by_scale is None:
            return torch.zeros((), device=self.codes.device)
        return self._share(self.by_scale)

    def _share(self, count: Tensor) -> Tensor:
        return count / (max(self.free, 1) if isinstance(self.free, int) else self.free.clamp_min(1))


class _Entry:
    """The record of one weight."""

    def __init__(self, weight: Tensor, quantizer: Quantizer) -> None:
        self.weight, self.quantizer = weight, quantizer
        self.codes: Tensor | None = None
        self.previous: Tensor | None = None
        self.by_weight: Tensor | None = None
        self.by_scale: Tensor | None = None
        self.parameters: dict[str, Tensor] = {}
        self.loaded: Tensor | None = None
        self.last_signature: tuple[object, ...] = ()
        self.levels: object = None

    def signature(self) -> tuple[object, ...]:
        """Return a value that differs after a change; its last part is the quantizer's."""
        weight = self.weight
        place = weight._version, weight.data_ptr(), weight.device
        return *place, fingerprint(weight), self.level_signature()

    def level_signature(self) -> object:
        """Return a value that differs after a change of the quantizer."""
        return [(t._version, t.data_ptr(), fingerprint(t)) for t in self.quantizer.own_tensors()]

    @contextmanager
    def with_previous_parameters(self) -> Iterator[None]:
        """Give the quantizer the parameters it had before the update."""
        if not self.parameters or self.levels == self.level_signature():
            yield
            return
        own = self.quantizer.moving_tensors()
        present = [tensor.detach().clone() for tensor in own.values()]
        try:
            for name, tensor in own.items():
                tensor.copy_(self.parameters[name])
            yield
        finally:
            for tensor, values in zip(own.values(), present, strict=True):
                tensor.copy_(values)


class CodeBook:
    """Codes by the name of the weight.

    Calls in an update: `begin`, the optimizer's move, `moved`, a refit of levels if any, `finish`
    (which is `rescaled` and `close`). A kernel that computes the codes as it moves the weights, at
    the quantizers' parameters before the update, writes them to `buffer`; its caller reports the
    count of changes by `wrote`.

    Attributes:
        on_finish: called by `finish` with the updates, if given.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._has_previous = False
        self._open: list[str] = []
        self.on_finish: Callable[[Mapping[str, Update]], None] | None = None

    def add(self, name: str, weight: Tensor, quantizer: Quantizer) -> None:
        """Add a weight."""
        self._entries[name] = _Entry(weight, quantizer)

    def __contains__(self, name: str) -> bool:
        """Return whether a weight of that name is in the book."""
        return name in self._entries

    def weights(self) -> dict[str, tuple[Tensor, Quantizer]]:
        """Return the weights and their quantizers by name."""
        return {name: (entry.weight, entry.quantizer) for name, entry in self._entries.items()}

    # ---- an update ----

    @torch.no_grad()
    def begin(self, names: Iterable[str] | None = None, keep_previous: bool = False) -> None:
        """Open an update: compute the codes of weights that have changed since the last one.

        Calling it again before the update changes nothing.

        Args:
            names: of the weights in the update; all by default.
            keep_previous: store the codes before the update as well, one byte per weight.

        Raises:
            RuntimeError: a quantizer has no scale yet.
        """
        self._open = list(self._entries if names is None else names)
        for name in self._open:
            entry = self._entries[name]
            entry.by_weight = entry.by_scale = None
            moving = entry.quantizer.moving_tensors()
            entry.parameters = {key: tensor.detach().clone() for key, tensor in moving.items()}
            signature = entry.signature()
            if entry.loaded is not None:
                # A copy: updates write into it, and the checkpoint may be loaded again.
                entry.codes, entry.loaded = entry.loaded.to(entry.weight.device, copy=True), None
            elif entry.codes is None or entry.last_signature != signature:
                entry.codes = entry.quantizer.codes(entry.weight)
            if keep_previous:
                if entry.previous is None or entry.previous.device != entry.codes.device:
                    entry.previous = entry.codes.clone()
                else:
                    entry.previous.copy_(entry.codes)
            entry.last_signature, entry.levels = signature, signature[-1]
        self._has_previous |= keep_previous

    def buffer(self, name: str) -> Tensor:
        """Return the codes for a caller that overwrites them itself; see `wrote`."""
        codes = self._entries[name].codes
        assert codes is not None
        return codes

    def wrote(self, name: str, count: Tensor) -> None:
        """Report that `buffer` has the new codes; ``count`` free ones changed, 0-d integer."""
        self._entries[name].by_weight = count

    @torch.no_grad()
    def moved(self) -> Mapping[str, Update]:
        """Return what the weights' move did, at the quantizers' parameters before the update."""
        for name in self._open:
            entry = self._entries[name]
            if entry.by_weight is None:
                with entry.with_previous_parameters():
                    entry.by_weight = entry.quantizer.recode_(entry.weight, self.buffer(name))
        return self._updates()

    @torch.no_grad()
    def rescaled(self) -> Mapping[str, Update]:
        """Return the same with what changes of the quantizers have done since."""
        for name in self._open:
            entry = self._entries[name]
            signature = entry.level_signature()
            if entry.levels != signature:
                count = entry.quantizer.recode_(entry.weight, self.buffer(name))
                entry.by_scale = count if entry.by_scale is None else entry.by_scale + count
                entry.levels = signature
        return self._updates()

    @torch.no_grad()
    def finish(self) -> Mapping[str, Update]:
        """Return what the whole update did, refits of the levels since `moved` included."""
        self.moved()
        updates = self.rescaled()
        self.close()
        self._has_previous = False
        if self.on_finish is not None:
            self.on_finish(updates)
        return updates

    def close(self) -> None:
        """End the update: the present state is the one that later changes are compared with.

        Held weights are no part of it: holding one changes its code at the next update.
        """
        for name in self._open:
            entry = self._entries[name]
            entry.last_signature = entry.signature()

    def forget(self) -> None:
        """Drop all codes, e.g. after an update that failed; the next one computes them again."""
        for entry in self._entries.values():
            entry.codes, entry.by_weight, entry.by_scale = None, None, None
        self._open, self._has_previous = [], False

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Ignore changes made within the context; the caller undoes them at its end."""
        intact = [
            entry for entry in self._entries.values() if entry.last_signature == entry.signature()
        ]
        yield
        for entry in intact:
            entry.last_signature = entry.signature()

    def _updates(self) -> dict[str, Update]:
        return {name: self._update_of(name) for name in self._open}

    def _update_of(self, name: str) -> Update:
        entry = self._entries[name]
        assert entry.by_weight is not None
        held = entry.quantizer.held
        free = entry.weight.numel() if held is None else torch.count_nonzero(held == FREE)
        previous = entry.previous if self._has_previous else None
        counts = entry.by_weight, entry.by_scale
        return Update(self.buffer(name), previous, *counts, free, entry.quantizer, entry.parameters)

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Tensor]:
        """Return the codes at the last update by name; needed where a method changes them."""
        return {
            name: entry.codes for name, entry in self._entries.items() if entry.codes is not None
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the codes at the last update, before or after weights are loaded."""
        for name, codes in state.items():
            if name in self._entries:
                self._entries[name].loaded = codes
