"""Methods that accompany training of quantized weights: one file per method."""

from tr_det.core.methods.attach import Attached, attach
from tr_det.core.methods.base import METHODS, Method, Run, build_method

METHODS.discover(__name__)

__all__ = ["METHODS", "Attached", "Method", "Run", "attach", "build_method"]
