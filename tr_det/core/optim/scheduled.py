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

from tr_det.core.optim.groups import Group
from tr_det.core.transition import UPDATE_RULES, TargetSchedule, running_rate, transition_rate

# Keys of a TR group. Not saved: the module. Saved: identity, to refuse a checkpoint of another
# model ...
QUANTIZER = "quantizer"
NAME, BITS = "name", "bits"
# ... 0-d float32 tensors on the parameter's device, which loading a state dict does not cast ...
TALR, RUNNING_TR, RATE = "talr", "running_tr", "transition_rate"
# ... and Python numbers.
TARGET_TR, STEP = "target_tr", "tr_step"


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
        tr_momentum: m in [0, 1).
        tr_schedule: ``"cosine"``, ``"linear"``, ``"step"``, ``"constant"`` or an fvcore
            ``ParamScheduler``.
        tr_final: last target TR, in [0, 1], approached instead of 0 (Table S6).
        tr_update: TALR rule: ``"additive"`` (Eq. 11, the paper's), ``"multiplicative"`` (S1) or
            ``"momentum"`` (S2).
        tr_signal: ``"transition_rate"`` (Eq. 5).
        tr_granularity: ``"layer"``.
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
        tr_momentum: float = 0.99,
        tr_schedule: str | ParamScheduler = "cosine",
        tr_final: float = 0.0,
        tr_update: str = "additive",
        tr_signal: str = "transition_rate",
        tr_granularity: str = "layer",
        tr_gain: float | None = None,
        tr_decay: str = "talr",
        **kwargs: Any,
    ) -> None:
        _check("tr_factor", tr_factor, tr_factor > 0, "positive")
        _check("tr_momentum", tr_momentum, 0 <= tr_momentum < 1, "in [0, 1)")
        _check("tr_final", tr_final, 0 <= tr_final <= 1, "in [0, 1]")
        _check("tr_update", tr_update, tr_update in UPDATE_RULES, f"one of {sorted(UPDATE_RULES)}")
        _check("tr_signal", tr_signal, tr_signal == "transition_rate", "'transition_rate'")
        _check("tr_granularity", tr_granularity, tr_granularity == "layer", "'layer'")
        _check("tr_gain", tr_gain, tr_gain is None or tr_gain >= 0, "None or not negative")
        _check("tr_decay", tr_decay, tr_decay in ("talr", "lr"), "'talr' or 'lr'")
        _check(
            "differentiable",
            True,
            not kwargs.get("differentiable"),
            "False: a transition has no gradient",
        )
        self._tr = _Settings(
            factor=tr_factor,
            momentum=tr_momentum,
            schedule=TargetSchedule(tr_schedule, total_steps),
            final=tr_final,
            update=tr_update,
            gain=tr_gain,
            decay_by_talr=tr_decay == "talr",
        )
        self._base_lr: dict[Tensor, float] = {}
        self._codes: dict[Tensor, Tensor] = {}
        self._constants_key: tuple[Any, ...] = ()
        self._constants_value = (torch.zeros(0), torch.zeros(0))
        self.step_callback: Callable[[TransitionScheduled], None] | None = None
        super().__init__(params, *args, **kwargs)
        self._disable_amp_inside_step()

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; one with a ``quantizer`` becomes TR-scheduled (see the class)."""
        if QUANTIZER in param_group:
            param_group = _checked_group(param_group)
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
            group[STEP] = 0
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
            self._control(active)
            self._update(active)
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
                    quantizer.initialize(weight)
                self._codes[weight] = quantizer.codes(weight)

    def _control(self, active: list[Group]) -> None:
        """Eqs. 10 and 11 for all layers at once."""
        if not active:
            return
        first_target, gain = self._constants(active)
        shape = self._tr.schedule(active[0][STEP])
        # The same numbers as _Settings.target, on the device and without sending anything there.
        target = first_target * shape + self._tr.final * (1.0 - shape)
        running = running_rate(_stack(active, RUNNING_TR), _stack(active, RATE), self._tr.momentum)
        rule = UPDATE_RULES[self._tr.update]
        talr = rule(_stack(active, TALR), running, target, gain, self._tr.momentum)
        for group, new_running, new_talr in zip(
            active, running.unbind(), talr.unbind(), strict=True
        ):
            group[RUNNING_TR], group[TALR] = new_running, new_talr
            group[TARGET_TR] = self._tr.target(group[BITS], group[STEP])

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
                rate = group[TALR] if self._tr.decay_by_talr else group["lr"]
                weight.mul_(1.0 - group["weight_decay"] * rate)
            weight.addcmul_(direction, group[TALR])

    def _count_transitions(self, active: list[Group]) -> None:
        """Eq. 5 for the update just made; the next step's controller uses it."""
        for group in active:
            weight = group["params"][0]
            codes = group[QUANTIZER].codes(weight)
            group[RATE] = transition_rate(codes, self._codes[weight])
            self._codes[weight] = codes

    def _torch_step(self) -> None:
        # torch wraps a class' step to run the hooks and profiler once per call; ours is wrapped
        # already.
        step = super().step.__func__  # type: ignore[attr-defined]
        getattr(step, "__wrapped__", step)(self) if getattr(step, "hooked", False) else step(self)

    def _decay_is_decoupled(self, group: Group) -> bool:
        return bool(group.get("decoupled_weight_decay", isinstance(self, torch.optim.AdamW)))

    def _constants(self, active: list[Group]) -> tuple[Tensor, Tensor]:
        """Return R_0 and eta of the layers, on their device; sent there once per set of layers."""
        weights = [group["params"][0] for group in active]
        key = (weights[0].device, *map(id, weights))
        if key != self._constants_key:
            targets = [self._tr.factor * math.sqrt(group[BITS]) for group in active]
            gains = [
                self._base_lr[weight] if self._tr.gain is None else self._tr.gain
                for weight in weights
            ]
            self._constants_value = (
                torch.tensor(targets, dtype=torch.float32, device=weights[0].device),
                torch.tensor(gains, dtype=torch.float32, device=weights[0].device),
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
        _check_same_layers(state_dict["param_groups"], self.param_groups)
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


@dataclass(frozen=True)
class _Settings:
    factor: float
    momentum: float
    schedule: TargetSchedule
    final: float
    update: str
    gain: float | None
    decay_by_talr: bool

    def target(self, bits: int, step: int) -> float:
        """Return R_t of a layer."""
        shape = self.schedule(step)
        return self.factor * math.sqrt(bits) * shape + self.final * (1.0 - shape)


def _stack(groups: list[Group], key: str) -> Tensor:
    return torch.stack([group[key] for group in groups])


def _checked_group(group: Group) -> Group:
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    name = group.get(NAME, "a TR group")
    if len(params) != 1:
        raise ValueError(
            f"{name}: a group with a quantizer holds {len(params)} parameters; must be one"
        )
    if any(p.requires_grad for p in group[QUANTIZER].parameters()):
        raise ValueError(
            f"{name}: the weight quantizer's scale is trained, so weights would transit without "
            "being updated; under TR scheduling it must be frozen (learn_scale=False, "
            "learn_weight_scale=False)"
        )
    return {**group, "params": params, NAME: name}


def _check_same_layers(saved: list[Group], own: list[Group]) -> None:
    theirs = [(group.get(NAME, "?"), group[BITS]) for group in saved if TALR in group]
    ours = [(group[NAME], group[BITS]) for group in own if QUANTIZER in group]
    if theirs == ours:
        return
    if len(theirs) != len(ours):
        raise ValueError(
            f"optimizer state has {len(theirs)} TR-scheduled weights, this optimizer has "
            f"{len(ours)}: it was written with another optimizer, or for another model"
        )
    for (their_name, their_bits), (our_name, our_bits) in zip(theirs, ours, strict=True):
        if their_name != our_name:
            raise ValueError(
                f"optimizer state is for weight {their_name!r} where this model has {our_name!r}"
            )
        if their_bits != our_bits:
            raise ValueError(
                f"optimizer state of {our_name!r} is for {their_bits} bits, this model has "
                f"{our_bits}; resume with the bit-width the run was started with"
            )


def _check(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r}: must be {allowed}")
