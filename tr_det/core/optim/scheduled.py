"""Transition-rate scheduling for any torch optimizer.

Paper: *Scheduling Weight Transitions for Quantization-Aware Training*, Lee, Jeon, Kim, Ham, ICCV
2025, Algorithm 1. For each quantized layer, at update t = 0, 1, 2, ...

    Eq. 5     k_t = share of codes that differ from those at the previous update, k_0 = 0
    Eq. 10    K_t = m K_{t-1} + (1 - m) k_t, K_{-1} = 0
    Eq. 11    U_t = max(0, U_{t-1} + eta (R_t - K_t)), U_{-1} = eta = base learning rate
    Eq. 12    w_{t+1} = w_t - U_t g_t

How one mechanism serves every torch optimizer: their updates are linear in the learning rate and
do not read the parameter except for weight decay. So for the quantized weights the torch step runs
at learning rate 1 and without decay on a zero tensor put in the parameter's place, which leaves
``-g_t`` there; the latent weight is put back and moved by U_t times that. All options of the torch
optimizer keep working.

Deviations from the paper, where it is silent:
  * a layer without gradient at a step is not touched: no update, and its controller stands still;
  * decoupled weight decay (AdamW) is multiplied by the TALR, or with ``tr_decay="lr"`` by the
    group's learning rate;
  * past ``total_steps`` the last target is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor

from tr_det.core.optim.checks import check_same_layers, checked_group
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import (
    BITS,
    CONTROLLER,
    NAME,
    QUANTIZER,
    RATE,
    RUNNING_TR,
    STEP,
    TALR,
    TARGET_TR,
)
from tr_det.core.transition import (
    SIGNALS,
    UPDATE_RULES,
    Feedback,
    TransitionSettings,
    running_rate,
)
from tr_det.core.transition.settings import check


@dataclass(frozen=True)
class TransitionMetrics:
    """What the last step used, one element per TR group, in the groups' order.

    Attributes:
        names: parameter names.
        target: R_t, shape (layers,), float32, on the CPU.
        running: K_t, shape (layers,), float32, on the parameters' device.
        talr: U_t, likewise.
        rate: share of codes that the step just made change (k_{t+1}), likewise.
    """

    names: tuple[str, ...]
    target: Tensor
    running: Tensor
    talr: Tensor
    rate: Tensor


class TransitionScheduled(torch.optim.Optimizer):
    """Mixin that follows a target transition rate in every group with a ``quantizer``.

    Args:
        params: groups; those with a ``quantizer`` key hold exactly one latent weight
            (`tr_param_groups` makes them) and show ``talr``, ``running_tr`` and ``target_tr``
            after each step.
        *args: the torch optimizer's own.
        total_steps: T, length of the run in optimizer steps.
        tr_factor: lambda > 0; the first target of a layer with b-bit weights is lambda sqrt(b).
        tr_momentum: m in [0, 1), 0.99 in the paper; None derives it from total_steps, so that a
            short run has a quick controller (`default_momentum`).
        tr_schedule: ``"cosine"``, ``"linear"``, ``"step"``, ``"constant"`` or an fvcore
            ``ParamScheduler``.
        tr_final: last target TR, in [0, 1], approached instead of 0 (Table S6).
        tr_update: TALR rule: ``"additive"`` (Eq. 11, the paper's), ``"multiplicative"`` (S1),
            ``"momentum"`` (S2), or ``"pi"``, ours, which tracks best (`tr_det.core.transition.pi`).
        tr_signal: what is measured and followed: ``"transition_rate"`` (Eq. 5) or
            ``"effective_step_size"`` (S3; lambda is then in units of levels).
        tr_granularity: one controller per ``"layer"``, or one for the ``"model"``: its signal and
            target are the means over all quantized weights.
        tr_gain: eta of Eq. 11, >= 0; None means the group's base learning rate, as in the paper.
            Runs much shorter than the paper's need a larger one, about ``lr / (R_0 * T / 20)``.
        tr_decay: ``"talr"`` or ``"lr"``: what multiplies decoupled weight decay.
        **kwargs: the torch optimizer's own, e.g. ``lr``, ``momentum``, ``weight_decay``.

    Raises:
        ValueError: an argument out of range, a group whose quantizer's scale is trained or that
            holds more than one parameter, or ``differentiable=True``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *args: Any,
        total_steps: int,
        tr_factor: float = 1e-3,
        tr_momentum: float | None = 0.99,
        tr_schedule: str | ParamScheduler = "cosine",
        tr_final: float = 0.0,
        tr_update: str = "additive",
        tr_signal: str = "transition_rate",
        tr_granularity: str = "layer",
        tr_gain: float | None = None,
        tr_decay: str = "talr",
        **kwargs: Any,
    ) -> None:
        check(
            "differentiable",
            True,
            not kwargs.get("differentiable"),
            "False: a transition has no gradient",
        )
        self._tr = TransitionSettings(
            total_steps=total_steps,
            factor=tr_factor,
            momentum=tr_momentum,
            schedule=tr_schedule,
            final=tr_final,
            update=tr_update,
            signal=tr_signal,
            granularity=tr_granularity,
            gain=tr_gain,
            decay=tr_decay,
        )
        self._base_lr: dict[Tensor, float] = {}
        self._codes: dict[Tensor, Tensor] = {}
        self._constants_key: tuple[Any, ...] = ()
        self._constants_value: tuple[Tensor, ...] = ()
        self.step_callback: Callable[[TransitionScheduled], None] | None = None
        super().__init__(params, *args, **kwargs)
        self._disable_amp_inside_step()

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; one with a ``quantizer`` becomes TR-scheduled (see the class)."""
        if QUANTIZER in param_group:
            param_group = checked_group(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if QUANTIZER in group:
            weight = group["params"][0]
            self._base_lr[weight] = float(group["lr"])
            group[BITS] = group[QUANTIZER].bits
            group[TALR] = torch.tensor(
                self._base_lr[weight], dtype=torch.float32, device=weight.device
            )
            group[RUNNING_TR] = torch.zeros((), device=weight.device)
            group[RATE] = torch.zeros((), device=weight.device)
            group[TARGET_TR] = self._tr.target(group[BITS], 0)
            # A group that comes late joins the others' clock.
            group[STEP] = max((other.get(STEP, 0) for other in self.param_groups), default=0)
            self._reset_derived()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update, without host synchronisation; return the closure's loss, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            groups = self._tr_groups()
            active = [group for group in groups if group["params"][0].grad is not None]
            self._remember_codes(active)
            before = [{key: group[key] for key in CONTROLLER} for group in groups]
            try:
                self._control(active, groups)
                self._update(active)
            except BaseException:
                # The quantized weights are as they were; a repeated step must not count twice.
                for group, values in zip(groups, before, strict=True):
                    group.update(values)
                raise
            self._count_transitions(active)
            for group in groups:
                group[STEP] += 1
        if self.step_callback is not None:
            self.step_callback(self)
        return loss

    def transition_metrics(self) -> TransitionMetrics:
        """Return what the last step used; reading the tensors' values is left to the caller."""
        groups = self._tr_groups()
        vectors = [
            _stack(groups, key) if groups else torch.zeros(0) for key in (RUNNING_TR, TALR, RATE)
        ]
        names = tuple(group[NAME] for group in groups)
        return TransitionMetrics(
            names, torch.tensor([group[TARGET_TR] for group in groups]), *vectors
        )

    def _tr_groups(self) -> list[Group]:
        return [group for group in self.param_groups if QUANTIZER in group]

    def _remember_codes(self, active: list[Group]) -> None:
        """Take the codes before the first update since construction or loading."""
        for group in active:
            weight = group["params"][0]
            if weight not in self._codes:
                quantizer = group[QUANTIZER]
                if not quantizer.is_initialized:
                    quantizer.initialize(weight, pooled=False)
                self._codes[weight] = quantizer.codes(weight)

    def _control(self, active: list[Group], groups: list[Group]) -> None:
        """Eqs. 10 and 11 (or another rule) for all layers at once."""
        if not active:
            return
        step, settings = active[0][STEP], self._tr
        first_target, base, gain, share = self._constants(active)

        def target_at(step: int) -> Tensor:
            # The same numbers as TransitionSettings.target, without sending anything to the device.
            shape = settings.shape(step)
            return first_target * shape + settings.final * (1.0 - shape)

        target, previous_target = target_at(step), target_at(max(step - 1, 0))
        previous = _stack(active, RUNNING_TR)
        running = running_rate(previous, _stack(active, RATE), settings.running_momentum())
        shown = running
        if settings.granularity == "model":
            target, previous_target, first_target, previous, running = (
                (share * vector).sum().expand_as(vector)
                for vector in (target, previous_target, first_target, previous, running)
            )
        talr = UPDATE_RULES[settings.update](
            Feedback(
                talr=_stack(active, TALR),
                running=running,
                target=target,
                previous_running=previous,
                previous_target=previous_target,
                first_target=first_target,
                base=base,
                gain=gain,
                momentum=settings.running_momentum(),
                step=step,
            )
        )
        for group, new_running, new_talr in zip(active, shown.unbind(), talr.unbind(), strict=True):
            group[RUNNING_TR], group[TALR] = new_running, new_talr
            group[TARGET_TR] = settings.target(group[BITS], step)
        if settings.granularity == "model":
            for group in groups:  # those without gradient share the controller
                if group["params"][0].grad is None:
                    group[TALR] = active[0][TALR]

    def _update(self, active: list[Group]) -> None:
        """Eq. 12: run the torch step on zeros in the weights' place, then move the weights."""
        weights = [group["params"][0] for group in active]
        latents = [weight.data for weight in weights]
        grads = [weight.grad for weight in weights]
        replaced = [(group["lr"], group["weight_decay"]) for group in active]
        directions = [torch.zeros_like(latent) for latent in latents]
        try:
            for group, weight, direction in zip(active, weights, directions, strict=True):
                if group["weight_decay"] != 0 and not self._decay_is_decoupled(group):
                    # What the torch step would do, were the weight there; maximize flips the
                    # gradient, not the decay.
                    sign = -1.0 if group.get("maximize") else 1.0
                    weight.grad = weight.grad.add(weight, alpha=sign * group["weight_decay"])
                weight.data = direction
                group["lr"], group["weight_decay"] = 1.0, 0.0
            self._torch_step()
        finally:
            for group, weight, latent, grad, values in zip(
                active, weights, latents, grads, replaced, strict=True
            ):
                weight.data = latent
                weight.grad = grad
                group["lr"], group["weight_decay"] = values
        for group, weight, direction in zip(active, weights, directions, strict=True):
            if group["weight_decay"] != 0 and self._decay_is_decoupled(group):
                rate = group[TALR] if self._tr.decay == "talr" else group["lr"]
                weight.mul_(1.0 - group["weight_decay"] * rate)
            weight.addcmul_(direction, group[TALR])

    def _count_transitions(self, active: list[Group]) -> None:
        """Eq. 5 or S3 for the update just made; the next step's controller uses it."""
        signal = SIGNALS[self._tr.signal]
        for group in active:
            weight, quantizer = group["params"][0], group[QUANTIZER]
            codes = quantizer.codes(weight)
            group[RATE] = signal(codes, self._codes[weight], quantizer.grid.gamma)
            self._codes[weight] = codes

    def _torch_step(self) -> None:
        # torch wraps a class' step to run the hooks and profiler once per call; ours is wrapped
        # already.
        step = super().step.__func__  # type: ignore[attr-defined]
        getattr(step, "__wrapped__", step)(self) if getattr(step, "hooked", False) else step(self)

    def _decay_is_decoupled(self, group: Group) -> bool:
        return bool(group.get("decoupled_weight_decay", isinstance(self, torch.optim.AdamW)))

    def _constants(self, active: list[Group]) -> tuple[Tensor, ...]:
        """Return R_0, base learning rate, eta and share of all weights, as vectors over layers.

        They are sent to the device once per set of active layers.
        """
        weights = [group["params"][0] for group in active]
        key = (weights[0].device, *map(id, weights))
        if key != self._constants_key:
            base = [self._base_lr[weight] for weight in weights]
            total = sum(weight.numel() for weight in weights)
            rows = (
                [self._tr.factor * math.sqrt(group[BITS]) for group in active],
                base,
                base if self._tr.gain is None else [self._tr.gain] * len(weights),
                [weight.numel() / total for weight in weights],
            )
            self._constants_value = tuple(
                torch.tensor(row, dtype=torch.float32, device=weights[0].device) for row in rows
            )
            self._constants_key = key
        return self._constants_value

    def _reset_derived(self) -> None:
        """Forget what can be computed again from weights and settings."""
        self._codes = {}
        self._constants_key = ()

    def _disable_amp_inside_step(self) -> None:
        # A fused torch optimizer takes scaled gradients and skips inside step(). Here GradScaler
        # must unscale first and skip the whole step, so that a skipped step counts no transition
        # and moves no controller.
        self._step_supports_amp_scaling = False

    def state_dict(self) -> dict[str, Any]:
        """Return the torch optimizer's state with the controllers, without the quantizers."""
        state: dict[str, Any] = super().state_dict()
        for group in state["param_groups"]:
            group.pop(QUANTIZER, None)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; may be called again with the same one.

        Raises:
            ValueError: if it was written for other quantized weights or other bit-widths (named in
                the message).
        """
        check_same_layers(state_dict["param_groups"], self.param_groups)
        quantizers = [group.get(QUANTIZER) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, quantizer in zip(self.param_groups, quantizers, strict=True):
            if quantizer is not None:
                group[QUANTIZER] = quantizer
                for key in (TALR, RUNNING_TR, RATE):
                    group[key] = group[key].to(group["params"][0].device)
        self._reset_derived()

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling and deepcopy keep; the callback belongs to the run."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_tr": self._tr, "_base_lr": self._base_lr}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; torch calls this from load_state_dict as well."""
        super().__setstate__(state)
        self.__dict__.setdefault("step_callback", None)
        self._disable_amp_inside_step()
        self._reset_derived()


def _stack(groups: list[Group], key: str) -> Tensor:
    return torch.stack([group[key] for group in groups])
