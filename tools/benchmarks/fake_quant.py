"""Forward and backward of one 4-bit fake-quantizer, by tensor size: ours and others'.

All round to the same codes; Eq. 13's values are multiples of 1/16, the others' of the step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.measure import Call, Settings, alternate, ratio
from torch import Tensor

from tr_det.core import Quantizer, build_quantizer

TITLE = "Fake quantization, forward and backward, 4 bits unsigned, float32"
BYTES = 20
"""Per element, at least: forward reads x, writes x_q; backward reads g and x, writes dL/dx."""
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
    """Return a line per rival that is not installed or does not run here."""
    return [f"{name}: left out, {reason}" for name, (_, reason) in _optional().items() if reason]


def _rows_of(size: int, settings: Settings) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator).relu_().to(settings.device)
    grad = torch.randn(size, generator=generator).to(settings.device)
    calls: dict[str, Call] = {"copy": lambda: x.clone()}
    for name, (quantize, parameters) in _contestants(settings.device).items():
        calls[name] = _forward_backward(quantize, parameters, x.clone().requires_grad_(), grad)
    samples = alternate(calls, settings)
    copy = statistics.median(samples["copy"])
    table = []
    for name, times in samples.items():
        median = statistics.median(times)
        row: dict[str, Any] = {"elements": size, "what": name, "median, us": median * 1e6}
        if name != "copy":
            row["over ours"] = ratio(samples, name, OURS)
            row["share of copy bandwidth, %"] = 100 * copy * BYTES / COPY_BYTES / median
        table.append({**row, "_seconds": times})
    return table


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
    builders = {"Brevitas, learned scale": _brevitas, "torchao, frozen": _torchao}
    found = {}
    for name, build in builders.items():
        reason = ""
        try:
            quantize, _ = build("cpu")
            quantize(torch.rand(4, requires_grad=True)).sum().backward()
        except Exception as error:  # an optional rival of any version: whatever it raises
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
