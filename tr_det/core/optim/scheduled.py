"""Transition-rate scheduling for any torch optimizer.

Paper: *Scheduling Weight Transitions for Quantization-Aware Training*, Lee, Jeon, Kim, Ham, ICCV
2025, Algorithm 1. For each quantized layer, at update t = 0, 1, 2, ...

    Eq. 5     k_t = share of codes that differ from those at the previous update, k_0 = 0
    Eq. 10    K_t = m K_{t-1} + (1 - m) k_t, K_{-1} = 0
    Eq. 11    U_t = max(0, U_{t-1} + eta (R_t - K_t)), U_{-1} = eta = base learning rate
    Eq. 12    w_{t+1} = w_t - U_t g_t

How one mechanism serves every torch optimizer: their updates are linear in the learning rate. On
the host U_t is a number like any other, so the torch step runs with it for the quantized weights'
learning rate. On a device reading U_t would wait for the device, so there the torch step runs at
learning rate 1 and without decay on a zero tensor put in the weight's place (no optimizer reads the
weight otherwise), which leaves ``-g_t``; the latent weight is put back and moved by U_t times that.
All options of the torch optimizer keep working; where ``fused`` and ``foreach`` are left open, the
quantized weights on the host take torch's fused implementation.

Deviations from the paper, where it is silent:
  * a layer without gradient at a step is not touched: no update, and its controller stands still;
  * decoupled weight decay (AdamW) is multiplied by the TALR, or with ``tr_decay="lr"`` by the
    group's learning rate;
  * past ``total_steps`` the last target is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor

from tr_det.core.optim.checks import check_same_state, checked_group
from tr_det.core.optim.controllers import Controllers, TransitionMetrics, stack
from tr_det.core.optim.fused import FusedSteps
from tr_det.core.optim.groups import Group
from tr_det.core.optim.host import is_on_host
from tr_det.core.optim.keys import (
    CONTROLLER,
    OPTIMIZER,
    QUANTIZER,
    RATE,
    STEP,
    TALR,
    UPDATES,
)
from tr_det.core.optim.move import move, recode
from tr_det.core.optim.nonfinite import GradientGuard
from tr_det.core.transition import TransitionSettings
from tr_det.core.transition.settings import check


class TransitionScheduled(torch.optim.Optimizer):
    """Mixin that follows a target transition rate in every group with a ``quantizer``.

    Args:
        params: groups; those with a ``quantizer`` key hold exactly one latent weight
            (`tr_param_groups` makes them) and show ``talr``, ``running_tr`` and ``target_tr``
            after each step.
        *args: the torch optimizer's own.
        total_steps: T, length of the run in optimizer steps.
        tr_factor: lambda > 0; the first target of a layer with b-bit weights is lambda sqrt(b).
            ``"auto"`` finds it by a probe in the first updates (`tr_det.core.transition.auto`) and
            then shows it as the groups' ``tr_factor``.
        tr_momentum: m in [0, 1), 0.99 in the paper; None derives it from total_steps, so that a
            short run has a quick controller (`default_momentum`).
        tr_schedule: ``"cosine"``, ``"linear"``, ``"step"``, ``"constant"`` or an fvcore
            ``ParamScheduler``.
        tr_warmup: updates over which the target first rises from 0; 0 for none, as in the paper.
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
        tr_nonfinite: what a NaN or inf in any gradient does: ``"refuse"`` raises, ``"skip"`` leaves
            everything as it was and counts in ``skipped_steps`` (`tr_det.core.optim.nonfinite`).
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
        tr_factor: float | str = 1e-3,
        tr_momentum: float | None = 0.99,
        tr_schedule: str | ParamScheduler = "cosine",
        tr_warmup: int = 0,
        tr_final: float = 0.0,
        tr_update: str = "additive",
        tr_signal: str = "transition_rate",
        tr_granularity: str = "layer",
        tr_gain: float | None = None,
        tr_decay: str = "talr",
        tr_nonfinite: str = "refuse",
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
            warmup=tr_warmup,
            final=tr_final,
            update=tr_update,
            signal=tr_signal,
            granularity=tr_granularity,
            gain=tr_gain,
            decay=tr_decay,
        )
        self._controllers = Controllers(self._tr)
        self._guard = GradientGuard(tr_nonfinite)
        self._fused = FusedSteps()
        self._codes: dict[Tensor, Tensor] = {}
        self._at_rest: set[int] = set()  # ids of groups
        self.step_callback: Callable[[TransitionScheduled], None] | None = None
        super().__init__(params, *args, **kwargs)
        self._disable_amp_inside_step()

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; one with a ``quantizer`` becomes TR-scheduled (see the class)."""
        if QUANTIZER in param_group:
            param_group = checked_group(param_group)
        others = self._tr_groups() if self.param_groups else []
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if QUANTIZER in group:
            group[OPTIMIZER] = self._torch_class().__name__
            self._controllers.start(group, others)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update, without host synchronisation; return the closure's loss, if given.

        Raises:
            FloatingPointError: if a gradient has NaN or inf, unless ``tr_nonfinite="skip"``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            groups = self._tr_groups()
            if groups and not self._guard.admits(self.param_groups):
                return loss
            active = [group for group in groups if group["params"][0].grad is not None]
            self._remember_codes(active)
            before = [{key: group[key] for key in CONTROLLER} for group in groups]
            try:
                self._controllers.advance(active, groups)
                self._update(active)
            except BaseException:
                # A repeated step must not be controlled twice. Some weights may have moved, as with
                # the torch optimizer.
                for group, values in zip(groups, before, strict=True):
                    group.update(values)
                self._codes = {}
                raise
            for group in groups:
                group[STEP] += 1
            for group in active:
                group[UPDATES] += 1
            self._at_rest = {id(group) for group in groups} - {id(group) for group in active}
        if self.step_callback is not None:
            self.step_callback(self)
        return loss

    @property
    def skipped_steps(self) -> int:
        """How many steps ``tr_nonfinite="skip"`` has left out in this process."""
        return self._guard.skipped

    def transition_metrics(self) -> TransitionMetrics:
        """Return what the last step used; reading the tensors' values is left to the caller."""
        return TransitionMetrics.of(self._tr_groups(), self._at_rest)

    def _tr_groups(self) -> list[Group]:
        return [group for group in self.param_groups if QUANTIZER in group]

    def _remember_codes(self, active: list[Group]) -> None:
        """Take the codes before the first update since construction or loading."""
        for group in active:
            weight = group["params"][0]
            if weight not in self._codes or self._codes[weight].device != weight.device:
                quantizer = group[QUANTIZER]
                if not quantizer.is_initialized:
                    quantizer.initialize(weight, pooled=False)
                self._codes[weight] = quantizer.codes(weight)

    def _update(self, active: list[Group]) -> None:
        """Eq. 12 and what it does to the codes, for which the next step's controller waits."""
        if all(is_on_host(group["params"][0]) for group in active):
            self._update_on_host(active)
        else:
            self._update_on_device(active)

    def _update_on_host(self, active: list[Group]) -> None:
        """Let the torch step make Eq. 12, with U for a learning rate: it can be read here."""
        before = [dict(group) for group in active]
        rates = stack(active, TALR).tolist() if active else []
        try:
            for group, rate in zip(active, rates, strict=True):
                if self._decay_is_decoupled(group) and self._tr.decay == "lr":
                    group["params"][0].mul_(self._keep(group))
                    group["weight_decay"] = 0.0
                group["lr"] = rate
                if self._may_be_fused(group):
                    group["fused"] = True
            self._torch_step()
        finally:
            for group, values in zip(active, before, strict=True):
                group.update(values)
        for group in active:
            self._recode(group)

    def _may_be_fused(self, group: Group) -> bool:
        """Return whether torch's quickest implementation may be taken, the choice being open.

        On the host it goes through memory without looking at strides, so they must all be alike.
        """
        weight = group["params"][0]
        state = self.state.get(weight, {}).values()
        others = [t for t in state if isinstance(t, Tensor) and t.shape == weight.shape]
        dense: bool = torch.ops.aten.is_non_overlapping_and_dense(weight)
        return (
            group.get("fused", False) is None
            and group.get("foreach") is None
            and dense
            and weight.grad.layout == torch.strided
            and all(t.stride() == weight.stride() for t in (weight.grad, *others))
        )

    def _update_on_device(self, active: list[Group]) -> None:
        """Take g_t from a torch step on zeros, and make Eq. 12 where U is."""
        directions, keeps = self._directions(active), [self._keep(group) for group in active]
        codes = [self._codes[group["params"][0]] for group in active]
        if (
            active
            and self._tr.signal == "transition_rate"
            and all(
                self._fused.fit(group, *tensors)
                for group, *tensors in zip(active, directions, codes, strict=True)
            )
        ):
            self._fused.step(active, directions, [None] * len(active), codes, keeps)
            return
        for group, direction, keep in zip(active, directions, keeps, strict=True):
            move(group["params"][0], direction, group[TALR], keep)
            self._recode(group)

    def _recode(self, group: Group) -> None:
        weight = group["params"][0]
        group[RATE] = recode(weight, group[QUANTIZER], self._codes[weight], self._tr.signal)

    def _keep(self, group: Group) -> Tensor | float:
        """Return what decoupled decay leaves of a weight; 1.0 without such decay."""
        if group["weight_decay"] == 0 or not self._decay_is_decoupled(group):
            return 1.0
        if self._tr.decay == "talr":
            kept: Tensor = 1.0 - group["weight_decay"] * group[TALR]
            return kept
        return float(1.0 - group["weight_decay"] * group["lr"])

    def _directions(self, active: list[Group]) -> list[Tensor]:
        """Make the torch step; return g_t of the quantized weights.

        It runs on zeros in the quantized weights' place, at learning rate 1 and without decay.
        """
        weights = [group["params"][0] for group in active]
        latents = [weight.data for weight in weights]
        grads = [weight.grad for weight in weights]
        replaced = [(group["lr"], group["weight_decay"]) for group in active]
        directions = [torch.zeros_like(latent) for latent in latents]
        try:
            for group, weight, direction in zip(active, weights, directions, strict=True):
                weight.grad = self._decayed(group)
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
        return directions

    def _decayed(self, group: Group) -> Tensor:
        """Return the gradient with decay that is not decoupled.

        It is what the torch step would do, were the weight there; maximize flips the gradient, not
        the decay.
        """
        grad: Tensor = group["params"][0].grad
        if group["weight_decay"] == 0 or self._decay_is_decoupled(group):
            return grad
        sign = -1.0 if group.get("maximize") else 1.0
        return grad.add(group["params"][0], alpha=sign * group["weight_decay"])

    def _torch_step(self) -> None:
        # torch wraps a class' step to run the hooks and profiler once per call; ours is wrapped
        # already.
        step = super().step.__func__  # type: ignore[attr-defined]
        getattr(step, "__wrapped__", step)(self) if getattr(step, "hooked", False) else step(self)

    def _torch_class(self) -> type:
        """Return the torch optimizer underneath, whatever subclasses are on top."""
        return next(c for c in type(self).__mro__ if c.__module__.startswith("torch.optim"))

    def _decay_is_decoupled(self, group: Group) -> bool:
        return bool(group.get("decoupled_weight_decay", isinstance(self, torch.optim.AdamW)))

    def _disable_amp_inside_step(self) -> None:
        # A fused torch optimizer takes scaled gradients and skips inside step(). Here GradScaler
        # must unscale first and skip the whole step, so that a skipped step counts no transition
        # and moves no controller.
        self._step_supports_amp_scaling = False

    def state_dict(self) -> dict[str, Any]:
        """Return the torch optimizer's state with the controllers, without the quantizers."""
        self._guard.settle()
        state: dict[str, Any] = super().state_dict()
        for group in state["param_groups"]:
            group.pop(QUANTIZER, None)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; may be called again with the same one.

        Raises:
            ValueError: if it was written for other quantized weights, other bit-widths or by
                another optimizer (named in the message).
        """
        check_same_state(state_dict["param_groups"], self.param_groups)
        self._loading = [group.get(QUANTIZER) for group in self.param_groups]
        try:
            super().load_state_dict(state_dict)
        finally:
            self._loading = []
        self._guard.forget()

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling and deepcopy keep; the callback belongs to the run."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_tr": self._tr, "_guard": self._guard}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; torch calls this from load_state_dict as well."""
        super().__setstate__(state)
        self.__dict__.setdefault("step_callback", None)
        self._controllers = Controllers(self._tr)
        self._fused = FusedSteps()
        self._codes, self._at_rest = {}, set()
        self._disable_amp_inside_step()
        # Here, because torch's hooks after loading come next.
        for group, quantizer in zip(
            self.param_groups, self.__dict__.get("_loading", ()), strict=False
        ):
            if quantizer is not None:
                group[QUANTIZER] = quantizer
                self._controllers.restore(group)
