"""The controllers of all quantized layers: their state in the groups, their lines as vectors.

Lines 2 to 4 of Algorithm 1 (*Scheduling Weight Transitions for QAT*, ICCV 2025) for every layer at
once, on the parameters' device and without bringing a value to the host. Only ``tr_factor="auto"``
reads the measured rates, once, when its probe ends.
"""

from __future__ import annotations

import logging
import math
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
    FACTOR,
    MASS,
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
    """

    names: tuple[str, ...]
    target: Tensor
    running: Tensor
    talr: Tensor
    rate: Tensor

    @classmethod
    def of(cls, groups: list[Group], at_rest: set[int]) -> TransitionMetrics:
        """Collect what the groups show; ``at_rest`` has the ids of those the step left alone."""
        if not groups:
            return cls((), *(torch.zeros(0) for _ in range(4)))
        rates = [torch.zeros_like(g[RATE]) if id(g) in at_rest else g[RATE] for g in groups]
        return cls(
            names=tuple(group[NAME] for group in groups),
            target=torch.tensor([group[TARGET_TR] for group in groups]),
            running=stack(groups, RUNNING_TR),
            talr=stack(groups, TALR),
            rate=torch.stack(rates),
        )


class _Constants(NamedTuple):
    """Vectors over the active layers, on their device: float32, the last one bool."""

    root_bits: Tensor  # sqrt(b)
    base: Tensor  # base learning rate
    gain: Tensor  # eta
    share: Tensor  # of all active weights
    measured: Tensor  # whether there is a rate yet


class Controllers:
    """Advances the controllers of TR groups; their state lives in the groups.

    Args:
        settings: of the TR scheme.
    """

    def __init__(self, settings: TransitionSettings) -> None:
        self.settings = settings
        self._constants_key: tuple[Any, ...] = ()
        self._constants: _Constants

    def start(self, group: Group, others: list[Group]) -> None:
        """Give a new TR group its controller; one that comes late joins the others' clock."""
        device = group["params"][0].device
        group[BITS] = group[QUANTIZER].bits
        group[BASE_LR] = float(group["lr"])
        if self.settings.granularity == "model" and others:
            first = others[0]
            check(
                f"{group[NAME]}: lr",
                group[BASE_LR],
                first[BASE_LR] == group[BASE_LR],
                f"that of {first[NAME]!r}, {first[BASE_LR]!r}, with tr_granularity='model'",
            )
        group[TALR] = torch.tensor(group[BASE_LR], dtype=torch.float32, device=device)
        for key in (RUNNING_TR, RATE, MASS):
            group[key] = torch.zeros((), dtype=torch.float32, device=device)
        group[STEP] = max((other[STEP] for other in others), default=0)
        group[UPDATES] = 0
        own = None if self.settings.factor == AUTO else float(self.settings.factor)
        group[FACTOR] = others[0][FACTOR] if others else own
        group[TARGET_TR] = self._target(group, group[STEP])

    def restore(self, group: Group) -> None:
        """Make a loaded group ours: tensors on its device, lambda from the settings if given."""
        for key in TENSORS:
            group[key] = group[key].to(group["params"][0].device)
        if self.settings.factor != AUTO:
            group[FACTOR] = float(self.settings.factor)

    def advance(self, active: list[Group], groups: list[Group]) -> None:
        """Measure and follow, before an update.

        Args:
            active: groups whose weight has a gradient; the other layers' controllers stand still.
            groups: all TR groups.
        """
        if not active:
            return
        step = active[0][STEP]
        constants = self._constants_of(active)  # first: it sees to what is on another device
        before = stack(active, RUNNING_TR), stack(active, MASS)
        running, mass = self._measure(active, constants, *before)
        probe = probe_steps(self.settings.total_steps)
        if active[0][FACTOR] is None and max(group[UPDATES] for group in groups) >= probe:
            # A rate needs two updates; this step's is not counted yet.
            awake = set(map(id, active))
            self._choose_factor([g for g in groups if g[UPDATES] + (id(g) in awake) > 1], groups)
        if active[0][FACTOR] is not None:  # else the base learning rate stays
            self._follow(active, groups, constants, step, running, mass, before)
        for group in active:
            group[TARGET_TR] = self._target(group, step)

    def _measure(
        self, active: list[Group], constants: _Constants, running: Tensor, mass: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eq. 10, and what K's measurements weigh: nothing before a layer's first update."""
        momentum = self.settings.running_momentum()
        running = running_rate(running, stack(active, RATE), momentum)
        mass = running_rate(
            mass, constants.measured, momentum
        )  # stays 0 until there is a measurement
        for group, new_running, new_mass in zip(
            active, running.unbind(), mass.unbind(), strict=True
        ):
            group[RUNNING_TR], group[MASS] = new_running, new_mass
        return running, mass

    def _follow(
        self,
        active: list[Group],
        groups: list[Group],
        constants: _Constants,
        step: int,
        running: Tensor,
        mass: Tensor,
        before: tuple[Tensor, Tensor],
    ) -> None:
        """Eq. 11 or another rule."""
        settings = self.settings
        first_target: Tensor = active[0][FACTOR] * constants.root_bits

        def target_at(step: int) -> Tensor:
            # The same numbers as TransitionSettings.target, without sending anything to the device.
            shape = settings.shape(step)
            return first_target * shape + settings.final * (1.0 - shape)

        vectors = [target_at(step), target_at(max(step - 1, 0)), first_target, running, mass]
        vectors += before
        if settings.granularity == "model":
            vectors = [(constants.share * vector).sum().expand_as(vector) for vector in vectors]
        target, previous_target, first_target, running, mass, previous, previous_mass = vectors
        talr = UPDATE_RULES[settings.update](
            Feedback(
                talr=stack(active, TALR),
                running=running,
                target=target,
                previous_running=previous,
                previous_target=previous_target,
                first_target=first_target,
                base=constants.base,
                gain=constants.gain,
                momentum=settings.running_momentum(),
                mass=mass,
                previous_mass=previous_mass,
            )
        )
        for group, new in zip(active, talr.unbind(), strict=True):
            group[TALR] = new
        if settings.granularity == "model":
            for group in groups:  # those without gradient share the controller
                if group["params"][0].grad is None:
                    group[TALR] = active[0][TALR]

    def _choose_factor(self, measured: list[Group], groups: list[Group]) -> None:
        """End the probe: one read from the device gives lambda to every group."""
        rates = (stack(measured, RUNNING_TR) / stack(measured, MASS)).tolist()
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
        """Return what does not change as a rule.

        It is sent to the device when the set of active or of measured layers changes.
        """
        weights = [group["params"][0] for group in active]
        measured = [group[UPDATES] > 0 for group in active]
        device = weights[0].device
        key = (device, *map(id, weights), *measured)
        if key != self._constants_key:
            for group, weight in zip(active, weights, strict=True):
                if weight.device != device:
                    raise ValueError(
                        f"{group[NAME]!r} is on {weight.device}, {active[0][NAME]!r} on {device}: "
                        "TR-scheduled weights must be on one device"
                    )
                if group[TALR].device != device:  # the model was moved after this was made
                    self.restore(group)
            base = [group[BASE_LR] for group in active]
            total = max(sum(weight.numel() for weight in weights), 1)
            gain = self.settings.gain
            rows = {
                "root_bits": [math.sqrt(group[BITS]) for group in active],
                "base": base,
                "gain": base if gain is None else [gain] * len(weights),
                "share": [weight.numel() / total for weight in weights],
            }
            self._constants = _Constants(
                **{name: send(row, torch.float32, device) for name, row in rows.items()},
                measured=send(measured, torch.bool, device),
            )
            self._constants_key = key
        return self._constants


def stack(groups: list[Group], key: str) -> Tensor:
    """Return the groups' 0-d tensors as one vector."""
    return torch.stack([group[key] for group in groups])
