"""Transition-rate scheduling for any torch optimizer.

Paper: *Scheduling Weight Transitions for Quantization-Aware Training*, Lee, Jeon, Kim, Ham, ICCV
2025, Algorithm 1. For each quantized layer, at update t = 0, 1, 2, ...

    Eq. 5     k_t = share of codes that differ from those at the previous update, k_0 = 0
    Eq. 10    K_t = m K_{t-1} + (1 - m) k_t, K_{-1} = 0
    Eq. 11    U_t = max(0, U_{t-1} + eta (R_t - K_t)), U_{-1} = eta = base learning rate
    Eq. 12    w_{t+1} = w_t - U_t g_t

One mechanism serves every torch optimizer, because their updates are linear in the learning rate.
On the host (`HostUpdate`) the torch step runs with U_t as the learning rate of the quantized
weights. On a device (`DeviceUpdate`) reading U_t would wait, so there the torch step runs at
learning rate 1 and without decay on zeros in the weight's place (no optimizer reads the weight
otherwise), which leaves ``-g_t``; then the latent weight is put back and moved by U_t times that.
All options of the torch optimizer keep working. Where ``fused`` and ``foreach`` are not given,
quantized weights on the host use torch's fused implementation.

Choices where the paper is silent:
  * a layer without gradient at a step is left alone: neither its weight nor its controller changes;
  * decoupled weight decay (AdamW) is multiplied by the TALR, or with ``tr_decay="lr"`` by the
    group's learning rate;
  * past ``total_steps`` the last target is held;
  * scales of quantized weights may be trained (the paper freezes them): transitions caused by the
    weight's move and by the scale's are then counted separately (``tr_scales``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from tr_det.core.codes import CodeBook, Update
from tr_det.core.errors import ConfigError, check
from tr_det.core.nn.layers import is_latent_weight
from tr_det.core.optim.checks import check_options, check_same_state, checked_group
from tr_det.core.optim.controllers import Controllers, TransitionMetrics
from tr_det.core.optim.device import DeviceUpdate
from tr_det.core.optim.groups import Group
from tr_det.core.optim.host import HostUpdate
from tr_det.core.optim.keys import (
    CONTROLLER,
    NAME,
    OPTIMIZER,
    QUANTIZER,
    RATE,
    STEP,
    UPDATES,
)
from tr_det.core.optim.nonfinite import GradientGuard
from tr_det.core.optim.weight_update import WeightUpdate, is_on_host
from tr_det.core.transition import TransitionSettings
from tr_det.core.transition.settings import knobs
from tr_det.core.weight_stats import SIGNALS


class TransitionScheduled(torch.optim.Optimizer):
    """Mixin that follows a target transition rate in every group with a ``quantizer``.

    Args:
        params: groups; those with a ``quantizer`` key hold exactly one latent weight
            (`tr_param_groups` makes them) and show ``talr``, ``running_tr`` and ``target_tr``
            after each step.
        *args: the torch optimizer's own.
        total_steps: T, length of the run in optimizer steps.
        tr_replay: name of a quantized weight -> its TALR at each of the ``total_steps`` updates.
            They are played back instead of controlled.
        **kwargs: ``tr_factor``, ``tr_momentum`` and so on, the fields of `TransitionSettings`
            (listed in ``tr_det/docs/tr_settings.md``), and the torch optimizer's own, e.g. ``lr``,
            ``momentum``, ``weight_decay``.

    Attributes:
        codes: of the quantized weights.
        made_update: whether the last call of ``step`` made an update.

    Raises:
        ConfigError: an argument out of range, a weight without curve in ``tr_replay``, a group
            whose quantizer is trained (unless ``tr_scales`` allows it) or that holds more than one
            parameter, a quantized weight in an ordinary group, or ``differentiable=True``.
    """

    _device_update: type[DeviceUpdate] = DeviceUpdate

    def __init__(
        self,
        params: Iterable[Any],
        *args: Any,
        total_steps: int,
        tr_replay: Mapping[str, Sequence[float]] | None = None,
        **kwargs: Any,
    ) -> None:
        differentiable = kwargs.get("differentiable", False)
        allowed = "False: a transition has no gradient"
        check("differentiable", differentiable, not differentiable, allowed)
        known = {f"tr_{name}": name for name in knobs()}
        given = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("tr_")}
        for key, value in given.items():
            check(key, value, key in known, f"left out; there are {sorted(known)}")
        settings = {known[key]: value for key, value in given.items()}
        self._tr = TransitionSettings(total_steps=total_steps, **settings)
        layers = tr_replay is None or self._tr.granularity == "layer"
        check("tr_granularity", self._tr.granularity, layers, "'layer' with tr_replay")
        self._replay = tr_replay
        self._guard = GradientGuard(self._tr.nonfinite)
        self._start()
        super().__init__(params, *args, **kwargs)
        self._disable_amp_inside_step()

    def _start(self) -> None:
        """Create what neither checkpoints nor copies hold."""
        self._controllers = Controllers(self._tr, self._replay)
        if not hasattr(self, "codes"):  # loading keeps it: methods read it as well
            self.codes = CodeBook()
            if self._tr.scales == "sum":  # refits of the levels after the step count as well
                self.codes.on_finish = self._measure
        self.codes.forget()
        self._weight_update: WeightUpdate | None = None
        self._left_alone: set[int] = set()  # ids of groups without gradient at the last step
        self._warned = False
        self.made_update = False

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; one with a ``quantizer`` becomes TR-scheduled (see the class)."""
        scheduled = QUANTIZER in param_group
        if scheduled:
            param_group = checked_group(param_group, len(self.param_groups), self._tr.scales)
            taken = param_group[NAME] in self.codes
            check(NAME, param_group[NAME], not taken, "another name in each TR group")
        others = self._tr_groups() if self.param_groups else []
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        check_options(group)
        if scheduled:
            group[OPTIMIZER] = self._torch_class().__name__
            self._controllers.start(group, others)
            self.codes.add(group[NAME], group["params"][0], group[QUANTIZER])
        elif any(map(is_latent_weight, group["params"])):
            raise ConfigError(
                "params",
                "quantized weights in an ordinary group",
                "groups made by tr_param_groups(model, lr, weight_decay), which gives each "
                "quantized weight a group with its quantizer",
            )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update, without host synchronisation; return the closure's loss, if given.

        Raises:
            FloatingPointError: if a gradient has NaN or inf, unless ``tr_nonfinite="skip"``.
            RuntimeError: a quantizer has no scale yet.
        """
        loss = None
        self.made_update = False
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            groups = self._tr_groups()
            if groups and not self._guard.admits(self.param_groups):
                return loss
            active = [group for group in groups if group["params"][0].grad is not None]
            before = [{key: group[key] for key in CONTROLLER} for group in groups]
            try:
                self.codes.begin(
                    [group[NAME] for group in active],
                    keep_previous=self._tr.signal == "effective_step_size",
                )
                self._controllers.advance(active, groups)
                self._weight_update_for(active).update(active)
                updates = self.codes.moved()
                if self._tr.scales != "frozen":  # from now on codes follow the scales as well
                    updates = self.codes.rescaled()
            except BaseException:
                # A repeated step must not move controllers twice. Some weights may have moved, as
                # with the torch optimizer.
                for group, values in zip(groups, before, strict=True):
                    group.update(values)
                self.codes.forget()
                raise
            self.codes.close()
            self._measure(updates)
            for group in active:
                group[UPDATES] += 1
            for group in groups:
                group[STEP] += 1
            self._left_alone = {id(group) for group in groups} - {id(group) for group in active}
        self.made_update = True
        if not groups and not self._warned:
            self._warned = True
            logging.getLogger(__name__).warning(
                "%s has no quantized weights, so it is plain %s: quantize_model(model, ...) and "
                "tr_param_groups(model, ...) come before it",
                type(self).__name__,
                self._torch_class().__name__,
            )
        return loss

    def _measure(self, updates: Mapping[str, Update]) -> None:
        """Store what the controllers follow at the next step."""
        for group in self._tr_groups():
            if group[NAME] in updates:
                update = updates[group[NAME]]
                rate = SIGNALS[self._tr.signal](update)
                group[RATE] = rate + update.rate_by_scale() if self._tr.scales == "sum" else rate

    @property
    def skipped_steps(self) -> int:
        """How many steps ``tr_nonfinite="skip"`` has left out in this process."""
        return self._guard.skipped

    def transition_metrics(self) -> TransitionMetrics:
        """Return what the last step used, as tensors on the parameters' device."""
        return TransitionMetrics.of(self._tr_groups(), self._left_alone)

    def _tr_groups(self) -> list[Group]:
        return [group for group in self.param_groups if QUANTIZER in group]

    def _weight_update_for(self, active: list[Group]) -> WeightUpdate:
        """Return the update for where the weights are now."""
        host = not active or is_on_host(active[0]["params"][0])
        wanted = HostUpdate if host else self._device_update
        if type(self._weight_update) is not wanted:
            self._weight_update = wanted(self, self._torch_step, self.codes, self._tr.decay)
        assert self._weight_update is not None
        return self._weight_update

    def _torch_step(self) -> None:
        """Make the torch optimizer's own step on all groups as they are."""
        # torch wraps a class's step to run hooks and the profiler; `step` above is wrapped already.
        step = super().step.__func__  # type: ignore[attr-defined]
        getattr(step, "__wrapped__", step)(self) if getattr(step, "hooked", False) else step(self)

    def _torch_class(self) -> type:
        """Return the torch optimizer below, whatever subclasses are above it."""
        return next(c for c in type(self).__mro__ if c.__module__.startswith("torch.optim"))

    def _disable_amp_inside_step(self) -> None:
        # A fused torch optimizer takes scaled gradients and skips inside step(). Here GradScaler
        # must unscale first and skip the whole step: a skipped step counts no transition.
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
        """Return what pickling and deepcopy copy; methods and codes belong to the run."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_tr": self._tr, "_replay": self._replay, "_guard": self._guard}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; torch calls this from load_state_dict as well."""
        super().__setstate__(state)
        self._start()
        self._disable_amp_inside_step()
        # Here, because torch calls the hooks after loading next.
        for group, quantizer in zip(
            self.param_groups, self.__dict__.get("_loading", ()), strict=False
        ):
            if quantizer is not None:
                group[QUANTIZER] = quantizer
                self._controllers.restore(group)
        for group in self._tr_groups():
            if group[NAME] not in self.codes:
                self.codes.add(group[NAME], group["params"][0], group[QUANTIZER])
