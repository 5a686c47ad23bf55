"""Forward and backward of one 4-bit fake-quantizer by tensor size: tr_det's and others.

All give the same codes. Levels of Eq. 13 are multiples of 1/16, the others multiples of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.measure import Call, Settings, alternate, timings
from torch import Tensor

from tr_det.core import Quantizer, build_quantizer

TITLE = "Fake quantization, forward and backward, 4 bits unsigned, float32"
BYTES = 20
"""Least number for each element: x read and x_q written; g and x read and dL/dx written."""
COPY_BYTES = 8
SCALE = 2.0
STEP = SCALE / 16
CODES = (0, 15)
OURS = "tr_det, learned scale"


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Return one row per size and contestant."""
    sizes = (1 << 10, 1 << 12) if settings.tiny else tuple(1 << n for n in (14, 17, 20, 22))
    if settings.device == "cuda" and not settings.tiny:
        sizes = tuple(1 << n for n in (14, 18, 22, 26))
    return [row for size in sizes for row in _rows_of(size, settings)]


def missing() -> list[str]:
    """Return a line for each optional library that is not installed or does not run here."""
    return [f"{name}: left out, {reason}" for name, (_, reason) in _optional().items() if reason]


def _rows_of(size: int, settings: Settings) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator).relu_().to(settings.device)
    grad = torch.randn(size, generator=generator).to(settings.device)
    calls: dict[str, Call] = {"copy": lambda: x.clone()}
    for name, (quantize, parameters) in _contestants(settings.device).items():
        calls[name] = _forward_backward(quantize, parameters, x.clone().requires_grad_(), grad)
    samples = alternate(calls, settings)
    table = timings(samples, OURS, "over ours", "us")
    floor = table["copy"]["median, us"] * BYTES / COPY_BYTES
    for row in table.values():
        row["share of copy bandwidth, %"] = 100 * floor / row["median, us"]
    for column in ("over ours", "share of copy bandwidth, %"):
        del table["copy"][column]
    return [{"elements": size, "what": name, **row} for name, row in table.items()]


def _forward_backward(
    quantize: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor, grad: Tensor
) -> Call:
    inputs = [x, *parameters]
    return lambda: torch.autograd.grad(quantize(x), inputs, grad)


def _contestants(device: str) -> dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]]:
    """Return name -> (function, parameters that get gradients)."""
    learned = torch.tensor(SCALE, device=device, requires_grad=True)
    step = torch.tensor([STEP], device=device, requires_grad=True)
    zero = torch.zeros(1, device=device)

    def unfused(x: Tensor) -> Tensor:
        quotient = (x * (16 / learned)).clamp(*CODES)
        return (quotient + (quotient.round() - quotient).detach()) / 16

    contestants: dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]] = {
        OURS: _ours("fixed_grid", SCALE, device),
        "tr_det, frozen scale": _ours("fixed_grid", SCALE, device, learn_scale=False),
        "tr_det, LSQ": _ours("lsq", STEP, device),
        "torch._fake_quantize_learnable_per_tensor_affine": (
            lambda x: torch._fake_quantize_learnable_per_tensor_affine(x, step, zero, *CODES, 1.0),
            [step],
        ),
        "torch.fake_quantize_per_tensor_affine, frozen": (
            lambda x: torch.fake_quantize_per_tensor_affine(x, STEP, 0, *CODES),
            [],
        ),
        "autograd operations, unfused": (unfused, [learned]),
    }
    for name, (build, reason) in _optional().items():
        if not reason:
            contestants[name] = build(device)
    return contestants


def _ours(
    name: str, scale: float, device: str, **options: Any
) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    quantizer: Quantizer = build_quantizer(name, 4, signed=False, **options).to(device)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.fill_(scale)
    return quantizer, [p for p in quantizer.parameters() if p.requires_grad]


def _optional() -> dict[str, tuple[Callable[[str], Any], str]]:
    """Return name -> (builder, why it is left out or "")."""
    found: dict[str, tuple[Callable[[str], Any], str]] = {}
    for name, build in (("Brevitas, learned scale", _brevitas), ("torchao, frozen", _torchao)):
        reason = ""
        try:
            quantize, _ = build("cpu")
            quantize(torch.rand(4, requires_grad=True)).sum().backward()
        except Exception as error:  # an optional library of any version may raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        found[name] = (build, reason)
    return found


def _brevitas(device: str) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    from brevitas.core.bit_width import BitWidthConst
    from brevitas.core.quant import IntQuant, RescalingIntQuant
    from brevitas.core.scaling import IntScaling, ParameterScaling
    from brevitas.core.zero_point import ZeroZeroPoint

    quantizer = RescalingIntQuant(
        IntQuant(narrow_range=False, signed=False),
        ParameterScaling(SCALE * 15 / 16),  # it divides by the largest code
        IntScaling(signed=False, narrow_range=False),
        ZeroZeroPoint(),
        BitWidthConst(4),
    ).to(device)
    return lambda x: quantizer(x)[0], list(quantizer.parameters())


def _torchao(device: str) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    from torchao.quantization.quant_primitives import _fake_quantize_affine

    step = torch.tensor([STEP], device=device)
    zero = torch.zeros(1, dtype=torch.int32, device=device)

    def quantize(x: Tensor) -> Tensor:
        out: Tensor = _fake_quantize_affine(x, x.shape, step, zero, torch.uint8, 0, 15)
        return out

    return quantize, []
