"""What a detector costs: storage at its bit-widths, multiply-accumulates and bit operations.

MACs are counted per layer on a copy without storage (the meta device), so that an image of full
size needs no memory. (fvcore's counter traces, which fails on that device.) Counted are backbone,
FPN, and the head of a dense detector or the RPN. The ROI heads run once per proposal, which depends
on the image; they are left out and named. BOPs are MACs times bits of the weight times bits of the
input, 32 x 32 for layers in full precision.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from tr_det.core import dequantize_layers
from tr_det.core.nn.config import FULL_PRECISION
from tr_det.core.nn.storage import storage_mb

RGB = ("red", "green", "blue")

_COUNTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Cost:
    """Costs of a detector.

    Attributes:
        image_size: height and width that the operations are for.
        macs: multiply-accumulates of one image.
        bops: bit operations of one image.
        full_bops: the same, were all layers in full precision.
        megabytes: storage of all parameters (10^6 bytes) at their bit-widths; shared ones once.
        full_megabytes: the same at 32 bits.
        per_proposal: top-level parts that run once per proposal and are not in the operations.
    """

    image_size: tuple[int, int]
    macs: int
    bops: int
    full_bops: int
    megabytes: float
    full_megabytes: float
    per_proposal: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the costs as text."""
        height, width = self.image_size
        without = f", without {', '.join(self.per_proposal)}" if self.per_proposal else ""
        return (
            f"parameters {self.megabytes:.2f} MB ({self.full_megabytes:.2f} MB at 32 bits); at "
            f"{height} x {width}{without}: {self.macs / 1e9:.2f} G MACs, {self.bops / 1e9:.1f} G "
            f"BOPs ({self.full_bops / 1e9:.1f} G at 32 bits)"
        )


def measure_cost(model: nn.Module, image_size: tuple[int, int]) -> Cost:
    """Return the costs of a detector of Detectron2's.

    Args:
        model: with a ``backbone``, and a ``head`` or a ``proposal_generator``; others are counted
            as far as the backbone.
        image_size: height and width, rounded up to what the backbone divides by.
    """
    twin: Any = copy.deepcopy(model).to("meta").eval()
    bits = {
        name: _bits(module) for name, module in twin.named_modules() if isinstance(module, _COUNTED)
    }
    dequantize_layers(twin)
    divisor = max(1, twin.backbone.size_divisibility)
    height, width = (-(-side // divisor) * divisor for side in image_size)
    with torch.no_grad(), counted_macs(twin) as macs:
        channels = len(getattr(model, "pixel_mean", RGB))
        _run_dense_parts(twin, torch.empty(1, channels, height, width, device="meta"))
    own, full = storage_mb(model)
    return Cost(
        image_size=(height, width),
        macs=sum(macs.values()),
        bops=sum(count * bits[name][0] * bits[name][1] for name, count in macs.items()),
        full_bops=sum(macs.values()) * FULL_PRECISION**2,
        megabytes=own,
        full_megabytes=full,
        per_proposal=("roi_heads",) if hasattr(model, "roi_heads") else (),
    )


def log_cost(model: nn.Module, cfg: CfgNode) -> Cost | None:
    """Log the costs at the config's test size, if the model has a backbone of Detectron2's.

    A model that cannot be counted is trained all the same.
    """
    logger = logging.getLogger(__name__)
    if not hasattr(model, "backbone"):
        logger.info("Cost: not counted, as the model has no backbone")
        return None
    longest = cfg.INPUT.MAX_SIZE_TEST
    short = cfg.INPUT.MIN_SIZE_TEST or longest  # 0: images are not resized
    try:
        cost = measure_cost(model, (short, min(longest, short * 4 // 3)))
    except Exception as error:  # layers that cannot run without storage, of whatever library
        logger.warning("Cost: not counted (%s: %s)", type(error).__name__, str(error)[:200])
        return None
    logger.info("Cost: %s", cost.line())
    return cost


@contextmanager
def counted_macs(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count the multiply-accumulates of each layer, by name, over all of its calls."""
    macs: dict[str, int] = {}
    names = {module: name for name, module in model.named_modules()}

    def count(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        name, weight = names[module], module.weight
        # Each element of the output, or of a transposed convolution's input, meets one filter.
        sites = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        macs[name] = macs.get(name, 0) + sites.numel() * weight[0].numel()

    handles = [m.register_forward_hook(count) for m in names if isinstance(m, _COUNTED)]
    try:
        yield macs
    finally:
        for handle in handles:
            handle.remove()


def _run_dense_parts(model: Any, image: Tensor) -> None:
    features = model.backbone(image)
    if hasattr(model, "head") and hasattr(model, "head_in_features"):
        model.head([features[name] for name in model.head_in_features])
    elif hasattr(model, "proposal_generator"):
        rpn = model.proposal_generator
        rpn.rpn_head([features[name] for name in rpn.in_features])


def _bits(module: nn.Module) -> tuple[int, int]:
    quantizers = (getattr(module, f"{part}_quantizer", None) for part in ("weight", "input"))
    weight, act = (FULL_PRECISION if q is None else q.bits for q in quantizers)
    return weight, act
