"""Quantizers: one file per method; the file name is the registry name."""

from tr_det.core.ops import FREE
from tr_det.core.quantizers.base import Quantizer
from tr_det.core.quantizers.calibrated import Calibrated
from tr_det.core.quantizers.registry import QUANTIZERS, build_quantizer
from tr_det.core.quantizers.spec import Grid, Rounding, Spec

QUANTIZERS.discover(__name__)

__all__ = [
    "FREE",
    "QUANTIZERS",
    "Calibrated",
    "Grid",
    "Quantizer",
    "Rounding",
    "Spec",
    "build_quantizer",
]
