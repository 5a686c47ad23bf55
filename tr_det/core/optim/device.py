"""The weight update on a device, where reading a TALR would wait: a torch step on zeros gives g_t.

Where they fit the kernel, Eq. 12 and the new codes of all layers take one launch, else each layer
is updated by itself. For SGD the kernel makes the torch step as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tr_det.core.ops import LayerStep, SGDOptions
from tr_det.core.ops.backends import has_triton
from tr_det.core.optim.controllers import stack
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import NAME, QUANTIZER, TALR
from tr_det.core.optim.weight_update import WeightUpdate

MOST_KERNELS = 16
"""Sets of layers whose tables are kept; the layers with a gradient may differ between steps."""


class DeviceUpdate(WeightUpdate):
    """Gets g_t from a torch step on zeros, and multiplies it by the TALR on the device."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._kernels: dict[tuple[int, ...], Any] = {}

    def update(self, active: list[Group]) -> None:
        """Update all groups; ``active`` are the TR groups whose weight has a gradient."""
        factors = [self.decay_factor(group) for group in active]
        directions = self._directions(active)
        if active and all(map(self.fits, active, directions, [None] * len(active))):
            self.launch(active, directions, [None] * len(active), factors)
            return
        for group, direction, factor in zip(active, directions, factors, strict=True):
            move(group["params"][0], direction, group[TALR], factor)

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
            self.torch_step()
        finally:
            for group, weight, latent, grad, values in zip(
                active, weights, latents, grads, replaced, strict=True
            ):
                weight.data = latent
                weight.grad = grad
                group["lr"], group["weight_decay"] = values
        return directions

    def _decayed(self, group: Group) -> Tensor:
        """Return the gradient plus decay that is not decoupled, as the torch step would add it.

        ``maximize`` flips the gradient, not the decay.
        """
        grad: Tensor = group["params"][0].grad
        if group["weight_decay"] == 0 or self.decay_is_decoupled(group):
            return grad
        sign = -1.0 if group.get("maximize") else 1.0
        return grad.add(group["params"][0], alpha=sign * group["weight_decay"])

    def fits(self, group: Group, direction: Tensor, buffer: Tensor | None) -> bool:
        """Return whether the kernel takes a TR group.

        Args:
            group: a TR group.
            direction: its gradient or g_t, in the weight's shape.
            buffer: its momentum buffer, likewise; None without.
        """
        weight = group["params"][0]
        codes = self.codes.buffer(group[NAME])
        dense: bool = torch.ops.aten.is_non_overlapping_and_dense(weight)
        return (
            runs_on(weight)
            and group[QUANTIZER].kernel() is not None
            and not any(p.requires_grad for p in group[QUANTIZER].parameters())  # already moved
            and dense
            and weight.dtype == torch.float32
            and weight.numel() > 0
            and all(
                t is None or (t.stride() == weight.stride() and t.shape == weight.shape)
                for t in (direction, buffer, codes)
            )
        )

    def launch(
        self,
        groups: list[Group],
        directions: list[Tensor],
        buffers: list[Tensor | None],
        factors: list[Tensor | float] | None = None,
        sgd: SGDOptions | None = None,
    ) -> None:
        """Update weights, momentum, codes and counts of groups that `fits`; see `StepKernel`.

        Args:
            groups: TR groups.
            directions: gradients with ``sgd``, else g_t of Eq. 12.
            buffers: momentum buffers, or None.
            factors: what decoupled decay multiplies each weight by.
            sgd: options of SGD's step, if the kernel makes it.
        """
        from tr_det.core.ops.affine_step_triton import StepKernel

        key = tuple(id(group["params"][0]) for group in groups)
        if key not in self._kernels:
            if len(self._kernels) >= MOST_KERNELS:
                self._kernels.clear()
            self._kernels[key] = StepKernel()
        layers = []
        for group, direction, buffer in zip(groups, directions, buffers, strict=True):
            quantizer = group[QUANTIZER]
            affine, scale, shift = quantizer.kernel()
            layers.append(
                LayerStep(
                    weight=group["params"][0].detach(),
                    direction=direction,
                    buffer=buffer,
                    codes=self.codes.buffer(group[NAME]),
                    affine=affine,
                    scale=scale.detach(),
                    shift=None if shift is None else shift.detach(),
                    held=quantizer.held,
                )
            )
        talr = stack(groups, TALR)
        keep = None
        if factors is not None and any(isinstance(f, Tensor) or f != 1.0 for f in factors):
            keep = torch.stack(
                [f if isinstance(f, Tensor) else torch.full_like(talr[0], f) for f in factors]
            )
        counts = self._kernels[key](layers, talr, keep=keep, sgd=sgd)
        for group, count in zip(groups, counts.unbind(), strict=True):
            self.codes.wrote(group[NAME], count)


class SGDDeviceUpdate(DeviceUpdate):
    """Lets the kernel do SGD's own arithmetic: most updates need no torch step on zeros."""

    def update(self, active: list[Group]) -> None:
        """Update all groups; ``active`` are the TR groups whose weight has a gradient."""
        launches: dict[SGDOptions, list[Group]] = {}
        rest = []
        for group in active:
            if self._fits_one_pass(group):
                options = SGDOptions(**{key: group[key] for key in SGDOptions.__annotations__})
                launches.setdefault(options, []).append(group)
            else:
                rest.append(group)
        with _hidden_gradients([group for groups in launches.values() for group in groups]):
            super().update(rest)
        for options, groups in launches.items():
            gradients = [group["params"][0].grad for group in groups]
            self.launch(groups, gradients, [self._buffer(group) for group in groups], sgd=options)

    def _buffer(self, group: Group) -> Tensor | None:
        state = self.optimizer.state[group["params"][0]]
        return state.get("momentum_buffer") if group["momentum"] != 0 else None

    def _fits_one_pass(self, group: Group) -> bool:
        buffer = self._buffer(group)
        if group["momentum"] != 0 and buffer is None:  # the first update makes it
            return False
        return self.fits(group, group["params"][0].grad, buffer)


def move(weight: Tensor, direction: Tensor, talr: Tensor, factor: Tensor | float) -> None:
    """Move a latent weight in place, after decoupled decay: ``w = factor w + U g``.

    Args:
        weight: floating point, any shape.
        direction: of descent, same shape and dtype.
        talr: U, 0-d float32.
        factor: what decoupled decay multiplies the weight by; 1.0 without.
    """
    if weight.dtype in (torch.float16, torch.bfloat16):
        # A 0-d factor takes the tensor's dtype, which would round U, and the factor to 1.
        wide = weight.float() * factor
        weight.copy_(wide.addcmul_(direction.float(), talr))
        return
    if isinstance(factor, Tensor) or factor != 1.0:
        weight.mul_(factor)
    weight.addcmul_(direction, talr)


def runs_on(weight: Tensor) -> bool:
    """Return whether the kernel runs on a weight's device."""
    return weight.is_cuda and has_triton()


@contextmanager
def _hidden_gradients(groups: list[Group]) -> Iterator[None]:
    """Hide the gradients of some weights, so that the torch step leaves them alone."""
    grads = [group["params"][0].grad for group in groups]
    try:
        for group in groups:
            group["params"][0].grad = None
        yield
    finally:
        for group, grad in zip(groups, grads, strict=True):
            group["params"][0].grad = grad
