"""Training loops by precision: Detectron2's own, and one for bfloat16 on any device."""

from __future__ import annotations

import time
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn

from tr_det.core.errors import check, check_among
from tr_det.runtime.bfloat16 import refuse_unset_gradients

DTYPES = ("auto", "float16", "bfloat16")


class AutocastTrainer(SimpleTrainer):
    """Detectron2's SimpleTrainer with the forward in bfloat16, on a CPU or a GPU.

    bfloat16 has float32's range, so that losses need no scaling. Detectron2's AMPTrainer runs on a
    GPU only and scales losses.

    On a CPU, images of at most 64 px are refused (`tr_det.runtime.bfloat16`).

    Args:
        model: takes data, returns a dict of losses.
        data_loader: iterable of data.
        optimizer: a torch optimizer.
        device_type: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        device_type: str,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.device_type = device_type
        if device_type == "cpu":
            refuse_unset_gradients(model, "SOLVER.AMP.ENABLED", True)

    def run_step(self) -> None:
        """Train one iteration."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, dtype=torch.bfloat16):
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        total.backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()


def build_loop(
    cfg: CfgNode, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """Return the training loop for ``cfg.SOLVER.AMP``.

    Raises:
        ValueError: float16 on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer(model, data_loader, optimizer)
    if amp_dtype(cfg) is torch.float16:
        return AMPTrainer(model, data_loader, optimizer)
    return AutocastTrainer(model, data_loader, optimizer, torch.device(cfg.MODEL.DEVICE).type)


def amp_dtype(cfg: CfgNode) -> torch.dtype:
    """Return the dtype that ``SOLVER.AMP.DTYPE`` means on ``MODEL.DEVICE``.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    name = cfg.SOLVER.AMP.DTYPE
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    check_among("SOLVER.AMP.DTYPE", name, DTYPES)
    allowed = "'bfloat16' or 'auto' on a CPU, as losses are scaled on a GPU only"
    check("SOLVER.AMP.DTYPE", name, not (name == "float16" and on_cpu), allowed)
    if name == "auto":
        return torch.bfloat16 if on_cpu else torch.float16
    return getattr(torch, name)
