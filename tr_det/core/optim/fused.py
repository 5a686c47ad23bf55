"""The step kernel for GPUs, as the optimizers use it: all layers of a step in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tr_det.core.ops import LayerStep, SGDOptions
from tr_det.core.ops.backends import has_triton
from tr_det.core.optim.controllers import stack
from tr_det.core.optim.groups import Group
from tr_det.core.optim.keys import QUANTIZER, RATE, TALR
from tr_det.core.quantizers.fixed_grid import FixedGridQuantizer

MOST_KERNELS = 16
"""Sets of layers whose tables are kept; which layers have gradients may change by step."""


class FusedSteps:
    """Launches the kernel for groups that it fits."""

    def __init__(self) -> None:
        self._kernels: dict[tuple[int, ...], Any] = {}

    @staticmethod
    def fit(group: Group, *tensors: Tensor | None) -> bool:
        """Return whether a group can be given to the kernel.

        Args:
            group: a TR group.
            *tensors: what else is read or written per weight: direction, buffer, codes.
        """
        weight = group["params"][0]
        dense: bool = torch.ops.aten.is_non_overlapping_and_dense(weight)
        return (
            _runs_on(weight)
            and isinstance(group[QUANTIZER], FixedGridQuantizer)
            and dense
            and weight.dtype == torch.float32
            and weight.numel() > 0
            and all(
                t is None or (t.stride() == weight.stride() and t.shape == weight.shape)
                for t in tensors
            )
        )

    def step(
        self,
        groups: list[Group],
        directions: list[Tensor],
        buffers: list[Tensor | None],
        codes: list[Tensor],
        keeps: list[Tensor | float] | None = None,
        sgd: SGDOptions | None = None,
    ) -> None:
        """Update weights, momentum, codes and the groups' rates; see `StepKernel`.

        Args:
            groups: TR groups that `fit`.
            directions: gradients with ``sgd``, else g_t of Eq. 12.
            buffers: momentum buffers, or None.
            codes: codes before the step.
            keeps: what decoupled decay leaves of each weight.
            sgd: make SGD's step.
        """
        from tr_det.core.ops.step_triton import StepKernel

        key = tuple(id(group["params"][0]) for group in groups)
        if key not in self._kernels:
            if len(self._kernels) >= MOST_KERNELS:
                self._kernels.clear()
            self._kernels[key] = StepKernel()
        layers = [
            LayerStep(
                weight=group["params"][0].detach(),
                direction=direction,
                buffer=buffer,
                codes=code,
                scale=group[QUANTIZER].scale.detach(),
                grid=group[QUANTIZER].grid,
            )
            for group, direction, buffer, code in zip(
                groups, directions, buffers, codes, strict=True
            )
        ]
        talr = stack(groups, TALR)
        keep = None
        if keeps is not None and any(isinstance(k, Tensor) or k != 1.0 for k in keeps):
            keep = torch.stack(
                [k if isinstance(k, Tensor) else torch.full_like(talr[0], k) for k in keeps]
            )
        rates = self._kernels[key](layers, talr, keep=keep, sgd=sgd)
        for group, rate in zip(groups, rates.unbind(), strict=True):
            group[RATE] = rate


def _runs_on(weight: Tensor) -> bool:
    return weight.is_cuda and has_triton()
