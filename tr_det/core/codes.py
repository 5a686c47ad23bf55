"""The codes of all quantized weights at the last update, and what each update changes in them.

There is one owner of them, made by the TR-scheduled optimizer or else by `tr_det.core.attach`. TR
controllers, telemetry, oscillation trackers and freezing read what it says of an update; nobody
else keeps or compares codes.

A weight or a quantizer's parameter that changes between two updates (edited, loaded, averaged) is
coded anew and counted for nothing. Such a change is told by the tensors' version counters and
addresses. One through ``weight.data`` leaves both; it is told by a hash of a few elements on the
host, where the C kernels are built, and on a GPU the kernel that moves the weights compares with
what it finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from tr_det.core.ops import fingerprint
from tr_det.core.quantizers import FREE, Quantizer


class Update(NamedTuple):
    """What one update did to a quantized weight.

    Attributes:
        codes: integer codes after it, in the weight's shape; the book's own, to be read only.
        previous: those before it, where they were kept.
        by_weight: how many codes the weight's move changed at the quantizer's numbers before the
            update, held ones left out; 0-d integer.
        by_scale: how many codes the move of a trained scale and a refit of the levels changed after
            that; None where the quantizer's numbers stayed.
        free: weights that are not held: a number, or 0-d on the device where some are.
        quantizer: the weight's.
        numbers: the quantizer's trained or refitted tensors before the update, by name.
    """

    codes: Tensor
    previous: Tensor | None
    by_weight: Tensor
    by_scale: Tensor | None
    free: int | Tensor
    quantizer: Quantizer
    numbers: Mapping[str, Tensor]

    def rate(self) -> Tensor:
        """Return the share of free codes that the weight's move changed, Eq. 5; 0-d float32."""
        return self._share(self.by_weight)

    def rate_by_scale(self) -> Tensor:
        """Return the share of free codes that the move of the quantizer's numbers changed."""
        if self.by_scale is None:
            return torch.zeros((), device=self.codes.device)
        return self._share(self.by_scale)

    def _share(self, count: Tensor) -> Tensor:
        return count / (max(self.free, 1) if isinstance(self.free, int) else self.free.clamp_min(1))


class _Page:
    """One weight in the book."""

    def __init__(self, weight: Tensor, quantizer: Quantizer) -> None:
        self.weight, self.quantizer = weight, quantizer
        self.codes: Tensor | None = None
        self.previous: Tensor | None = None
        self.by_weight: Tensor | None = None
        self.by_scale: Tensor | None = None
        self.numbers: dict[str, Tensor] = {}
        self.loaded: Tensor | None = None
        self.seal: tuple[object, ...] = ()
        self.levels: object = None

    def signature(self) -> tuple[object, ...]:
        """Return what differs after a change; the last part is that of the quantizer's numbers."""
        weight = self.weight
        place = weight._version, weight.data_ptr(), weight.device
        return *place, fingerprint(weight), self.level_signature()

    def level_signature(self) -> object:
        """Return what differs after a change of the quantizer's numbers."""
        return [(t._version, t.data_ptr(), fingerprint(t)) for t in self.quantizer.own_tensors()]

    @contextmanager
    def at_former_numbers(self) -> Iterator[None]:
        """Let the quantizer have the numbers before the update."""
        if not self.numbers or self.levels == self.level_signature():
            yield
            return
        own = self.quantizer.moving_tensors()
        present = [tensor.detach().clone() for tensor in own.values()]
        try:
            for name, tensor in own.items():
                tensor.copy_(self.numbers[name])
            yield
        finally:
            for tensor, values in zip(own.values(), present, strict=True):
                tensor.copy_(values)


class CodeBook:
    """Codes by the name of the weight.

    Within an update: `begin`, the optimizer's move, `moved`, a refit of levels if any, `finish`;
    `rescaled` and `close` are what `finish` does. A caller that writes codes and counts in its own
    pass over the weights, at the quantizers' numbers before the update, takes `buffer` and says so
    by `wrote`.
    """

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}
        self._has_previous = False
        self._open: list[str] = []

    def add(self, name: str, weight: Tensor, quantizer: Quantizer) -> None:
        """Add a weight."""
        self._pages[name] = _Page(weight, quantizer)

    def __contains__(self, name: str) -> bool:
        """Return whether a weight of that name is in the book."""
        return name in self._pages

    def weights(self) -> dict[str, tuple[Tensor, Quantizer]]:
        """Return the weights and their quantizers by name."""
        return {name: (page.weight, page.quantizer) for name, page in self._pages.items()}

    # ---- an update ----

    @torch.no_grad()
    def begin(self, names: Iterable[str] | None = None, keep_previous: bool = False) -> None:
        """Open an update of these weights (all by default): what changed since the last is coded.

        Calling it again before the update changes nothing.

        Args:
            names: of the weights.
            keep_previous: keep the codes beside those after the update, for one byte per weight.

        Raises:
            RuntimeError: a quantizer has no scale yet.
        """
        self._open = list(self._pages if names is None else names)
        for name in self._open:
            page = self._pages[name]
            page.by_weight = page.by_scale = None
            moving = page.quantizer.moving_tensors()
            page.numbers = {key: tensor.detach().clone() for key, tensor in moving.items()}
            signature = page.signature()
            if page.loaded is not None:
                # A copy: updates write into it, and the checkpoint may be loaded again.
                page.codes, page.loaded = page.loaded.to(page.weight.device, copy=True), None
            elif page.codes is None or page.seal != signature:
                page.codes = page.quantizer.codes(page.weight)
            if keep_previous:
                if page.previous is None or page.previous.device != page.codes.device:
                    page.previous = page.codes.clone()
                else:
                    page.previous.copy_(page.codes)
            page.seal, page.levels = signature, signature[-1]
        self._has_previous |= keep_previous

    def buffer(self, name: str) -> Tensor:
        """Return the codes for a caller that overwrites them itself; see `wrote`."""
        codes = self._pages[name].codes
        assert codes is not None
        return codes

    def wrote(self, name: str, count: Tensor) -> None:
        """Take note that the caller has written the codes, and how many free ones changed."""
        self._pages[name].by_weight = count

    @torch.no_grad()
    def moved(self) -> Mapping[str, Update]:
        """Return what the move of the open weights did, at the quantizers' former numbers."""
        for name in self._open:
            page = self._pages[name]
            if page.by_weight is None:
                with page.at_former_numbers():
                    page.by_weight = page.quantizer.recode_(page.weight, self.buffer(name))
        return self._updates()

    @torch.no_grad()
    def rescaled(self) -> Mapping[str, Update]:
        """Return the same with what the quantizers' numbers have done since, if they moved."""
        for name in self._open:
            page = self._pages[name]
            signature = page.level_signature()
            if page.levels != signature:
                count = page.quantizer.recode_(page.weight, self.buffer(name))
                page.by_scale = count if page.by_scale is None else page.by_scale + count
                page.levels = signature
        return self._updates()

    @torch.no_grad()
    def finish(self) -> Mapping[str, Update]:
        """Return what the whole update did, refits of the levels since `moved` included."""
        self.moved()
        updates = self.rescaled()
        self.close()
        self._has_previous = False
        return updates

    def close(self) -> None:
        """Take what is there for the state after the update: it counts as no change from outside.

        Held weights are not looked at: holding one changes its code at the next update.
        """
        for name in self._open:
            page = self._pages[name]
            page.seal = page.signature()

    def forget(self) -> None:
        """Forget all codes, e.g. after an update that failed; the next one begins anew."""
        for page in self._pages.values():
            page.codes, page.by_weight, page.by_scale = None, None, None
        self._open, self._has_previous = [], False

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Count what happens within for no change from outside; it is undone at the end."""
        intact = [page for page in self._pages.values() if page.seal == page.signature()]
        yield
        for page in intact:
            page.seal = page.signature()

    def _updates(self) -> dict[str, Update]:
        return {name: self._update_of(name) for name in self._open}

    def _update_of(self, name: str) -> Update:
        page = self._pages[name]
        assert page.by_weight is not None
        held = page.quantizer.held
        free = page.weight.numel() if held is None else torch.count_nonzero(held == FREE)
        previous = page.previous if self._has_previous else None
        counts = page.by_weight, page.by_scale
        return Update(self.buffer(name), previous, *counts, free, page.quantizer, page.numbers)

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Tensor]:
        """Return the codes at the last update by name; needed where a method changes them."""
        return {name: page.codes for name, page in self._pages.items() if page.codes is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take codes as those at the last update, whatever has been loaded since or will be."""
        for name, codes in state.items():
            if name in self._pages:
                self._pages[name].loaded = codes
