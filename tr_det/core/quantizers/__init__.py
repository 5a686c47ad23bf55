"""Quantizers: one file per method; the file name is the registry name."""

from tr_det.core.quantizers.base import QUANTIZERS, Quantizer, build_quantizer
from tr_det.core.quantizers.fixed_grid import FixedGridQuantizer

__all__ = ["QUANTIZERS", "FixedGridQuantizer", "Quantizer", "build_quantizer"]
