"""The controllers of all quantized layers, advanced together as vectors.

Lines 2 to 4 of Algorithm 1 (*Scheduling Weight Transitions for QAT*, ICCV 2025), on the parameters'
device and without reading a value from it. Only ``tr_factor="auto"`` reads the measured rates, once
when its probe ends.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tr_det.core.errors import check
from tr_det.core.ops.backends import send
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import (
    BASE_LR,
    BITS,
    CORRECTION,
    FACTOR,
    NAME,
    QUANTIZER,
    RATE,
    RUNNING_TR,
    STEP,
    TALR,
    TARGET_TR,
    TENSORS,
    UPDATES,
)
from tr_det.core.transition import (
    AUTO,
    UPDATE_RULES,
    Feedback,
    TransitionSettings,
    factor_from,
    probe_steps,
    running_rate,
)


@dataclass(frozen=True)
class TransitionMetrics:
    """What the last step used, one element per TR group, in the groups' order.

    Attributes:
        names: parameter names.
        target: R_t, shape (layers,), float32, on the CPU; NaN while ``tr_factor="auto"`` probes.
        running: K_t, shape (layers,), float32, on the parameters' device.
        talr: U_t, likewise.
        rate: share of codes that the step just made change (k_{t+1}), likewise; 0 for a layer
            without gradient.
        factor: lambda; NaN without TR groups and while ``tr_factor="auto"`` probes.
    """

    names: tuple[str, ...]
    target: Tensor
    running: Tensor
    talr: Tensor
    rate: Tensor
    factor: float

    @classmethod
    def of(cls, groups: list[Group], left_alone: set[int]) -> TransitionMetrics:
        """Collect from TR groups; ``left_alone`` has the ids of those that had no gradient."""
        rates = [torch.zeros_like(g[RATE]) if id(g) in left_alone else g[RATE] for g in groups]
        factor = groups[0][FACTOR] if groups else None
        return cls(
            names=tuple(group[NAME] for group in groups),
            target=torch.tensor([group[TARGET_TR] for group in groups]),
            running=stack(groups, RUNNING_TR),
            talr=stack(groups, TALR),
            rate=torch.stack(rates) if rates else torch.zeros(0),
            factor=math.nan if factor is None else factor,
        )


class _Constants(NamedTuple):
    """Of the active layers, on their device; vectors of shape (layers,), float32 but for one."""

    root_bits: Tensor  # sqrt(b)
    base: Tensor  # base learning rate
    gain: Tensor  # eta
    share: Tensor  # of all active weights
    measured: Tensor  # whether a layer has had an update, bool
    replay: Tensor  # TALRs to play back, shape (layers, updates); without any (layers, 0)


class Controllers:
    """Advances the controllers of TR groups; their state lives in the groups.

    Args:
        settings: of the TR scheme.
        replay: name of a weight -> its TALR at each update, to be played back instead of
            controlled; rates are measured all the same.
    """

    def __init__(
        self, settings: TransitionSettings, replay: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        self.settings = settings
        self.replay = replay
        self._constants_key: tuple[Any, ...] = ()
        self._constants: _Constants

    def start(self, group: Group, others: list[Group]) -> None:
        """Give a new TR group its controller, at the step number of the other groups."""
        device = group["params"][0].device
        group[BITS] = group[QUANTIZER].bits
        group[BASE_LR] = float(group["lr"])
        if self.replay is not None:
            curve = self.replay.get(group[NAME], ())
            fits, total = len(curve) == self.settings.total_steps, self.settings.total_steps
            given = f"{len(curve)} numbers for {group[NAME]}"
            check("tr_replay", given, fits, f"the TALRs of {total} updates for each weight")
        if self.settings.granularity == "model" and others:
            first = others[0]
            check(
                f"{group[NAME]}: lr",
                group[BASE_LR],
                first[BASE_LR] == group[BASE_LR],
                f"that of {first[NAME]!r}, {first[BASE_LR]!r}, with tr_granularity='model'",
            )
        group[TALR] = torch.tensor(group[BASE_LR], dtype=torch.float32, device=device)
        for key in (RUNNING_TR, RATE, CORRECTION):
            group[key] = torch.zeros((), dtype=torch.float32, device=device)
        group[STEP] = max((other[STEP] for other in others), default=0)
        group[UPDATES] = 0
        own = None if self.settings.factor == AUTO else float(self.settings.factor)
        group[FACTOR] = others[0][FACTOR] if others else own
        group[TARGET_TR] = self._target(group, group[STEP])

    def restore(self, group: Group) -> None:
        """Fit a loaded group to this run: tensors on its device, lambda from the settings."""
        for key in TENSORS:
            group[key] = group[key].to(group["params"][0].device)
        if self.settings.factor != AUTO:
            group[FACTOR] = float(self.settings.factor)

    def advance(self, active: list[Group], groups: list[Group]) -> None:
        """Measure the rates and set the TALRs of an update.

        Args:
            active: groups whose weight has a gradient; other controllers do not move.
            groups: all TR groups.
        """
        if not active:
            return
        step = active[0][STEP]
        constants = self._constants_of(active)  # first: it moves state to the device
        momentum = self.settings.running_momentum()
        previous = stack(active, RUNNING_TR), stack(active, CORRECTION)
        running = running_rate(previous[0], stack(active, RATE), momentum)
        correction = running_rate(previous[1], constants.measured, momentum)
        unstack(active, RUNNING_TR, running)
        unstack(active, CORRECTION, correction)
        probe = probe_steps(self.settings.total_steps)
        if active[0][FACTOR] is None and max(group[UPDATES] for group in groups) >= probe:
            # A rate needs two updates; this step's is not counted yet.
            now = set(map(id, active))
            self._choose_factor([g for g in groups if g[UPDATES] + (id(g) in now) > 1], groups)
        if self.replay is not None:  # past the end the last one is held
            unstack(active, TALR, constants.replay[:, min(step, self.settings.total_steps - 1)])
        elif active[0][FACTOR] is not None:  # else the base learning rate stays
            self._follow(active, constants, step, [running, correction, *previous])
        if self.settings.granularity == "model":
            for group in groups:  # those without gradient share the controller
                group[TALR] = active[0][TALR]
        for group in active:
            group[TARGET_TR] = self._target(group, step)

    def _follow(
        self, active: list[Group], constants: _Constants, step: int, measured: list[Tensor]
    ) -> None:
        """Set the TALRs by Eq. 11 or another rule.

        Args:
            active: groups whose weight has a gradient.
            constants: theirs.
            step: t.
            measured: K_t, its bias correction and both of t - 1, shape (active layers,) each.
        """
        settings = self.settings
        first_target: Tensor = active[0][FACTOR] * constants.root_bits

        def target_at(step: int) -> Tensor:
            # The same numbers as TransitionSettings.target, without sending anything to the device.
            shape = settings.shape(step)
            return first_target * shape + settings.final * (1.0 - shape)

        vectors = [first_target, target_at(step), target_at(max(step - 1, 0)), *measured]
        if settings.granularity == "model":
            vectors = [(constants.share * vector).sum().expand_as(vector) for vector in vectors]
        first_target, target, previous_target, running, correction, *previous = vectors
        feedback = Feedback(
            talr=stack(active, TALR),
            running=running,
            target=target,
            previous_running=previous[0],
            previous_target=previous_target,
            first_target=first_target,
            base=constants.base,
            gain=constants.gain,
            momentum=settings.running_momentum(),
            correction=correction,
            previous_correction=previous[1],
        )
        unstack(active, TALR, UPDATE_RULES[settings.update](feedback))

    def _choose_factor(self, measured: list[Group], groups: list[Group]) -> None:
        """Set lambda of all groups from the rates of the probe: one read from the device."""
        rates = (stack(measured, RUNNING_TR) / stack(measured, CORRECTION)).tolist()
        factor = factor_from(rates, [group[BITS] for group in measured])
        logging.getLogger(__name__).info(
            "tr_factor='auto': lambda = %.3g, from the transition rates of %d layers (%.3g to "
            "%.3g) at their base learning rates during %d updates",
            factor,
            len(rates),
            min(rates),
            max(rates),
            max(group[UPDATES] for group in groups),
        )
        for group in groups:
            group[FACTOR] = factor

    def _target(self, group: Group, step: int) -> float:
        if group[FACTOR] is None:
            return math.nan
        return self.settings.target(group[FACTOR], group[BITS], step)

    def _constants_of(self, active: list[Group]) -> _Constants:
        """Return the layers' constants; sent to the device when the active layers change."""
        weights = [group["params"][0] for group in active]
        measured = [group[UPDATES] > 0 for group in active]
        device = weights[0].device
        key = (device, *map(id, weights), *measured)
        if key != self._constants_key:
            for group in active:
                if group[TALR].device != device:  # the model was moved after this was made
                    self.restore(group)
            base = [group[BASE_LR] for group in active]
            total = max(sum(weight.numel() for weight in weights), 1)
            gain = self.settings.gain
            rows = [
                [math.sqrt(group[BITS]) for group in active],
                base,
                base if gain is None else [gain] * len(weights),
                [weight.numel() / total for weight in weights],
            ]
            root_bits, base_lr, eta, share = (send(row, torch.float32, device) for row in rows)
            on_device = send(measured, torch.bool, device)
            curves = [list(self.replay[g[NAME]]) if self.replay else [] for g in active]
            replay = send(curves, torch.float32, device)
            self._constants = _Constants(root_bits, base_lr, eta, share, on_device, replay)
            self._constants_key = key
        return self._constants


def stack(groups: list[Group], key: str) -> Tensor:
    """Return the groups' 0-d tensors as one vector, shape (groups,)."""
    return torch.stack([group[key] for group in groups]) if groups else torch.zeros(0)


def unstack(groups: list[Group], key: str, vector: Tensor) -> None:
    """Store a vector's elements in the groups, as 0-d tensors."""
    for group, value in zip(groups, vector.unbind(), strict=True):
        group[key] = value
