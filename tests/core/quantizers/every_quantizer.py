"""All registered quantizers, at every kind of width, sign, role and scale that they accept."""

import itertools
from typing import NamedTuple

import pytest
import torch
from quantizer_kit import FEW_BITS

from tr_det.core import QUANTIZERS, ConfigError, build_quantizer

CHANNELS = 3


class Case(NamedTuple):
    name: str
    bits: int
    signed: bool
    role: str
    axis: int | None  # of the channels; None: one scale per tensor

    def __str__(self):
        sign = "signed" if self.signed else "unsigned"
        scales = "" if self.axis is None else f"-per-channel{self.axis}"
        return f"{self.name}-{self.bits}-{sign}-{self.role}{scales}"

    def build(self, **options):
        if self.axis is not None:
            options |= {"per_channel": True, "channels": CHANNELS, "axis": self.axis}
        quantizer = build_quantizer(self.name, self.bits, self.signed, role=self.role, **options)
        quantizer.attached = True
        return quantizer

    def ready(self, **options):
        quantizer = self.build(**options)
        quantizer.calibrate(self.data())
        return quantizer

    def data(self, seed=0, tail=(4, 5), dtype=torch.float32):
        """Return random numbers; channels differ in size."""
        shape = (CHANNELS, 2) if self.axis != 1 else (2, CHANNELS)
        x = torch.randn((*shape, *tail), generator=torch.Generator().manual_seed(seed))
        sizes = torch.tensor([0.5, 1.0, 2.0]).view([-1, *[1] * (x.ndim - 1 - (self.axis or 0))])
        x = x * sizes if self.axis is not None else x
        return (x if self.signed else x.relu()).to(dtype)

    def ramp(self, size=400):
        """Return ascending numbers along the last dimension, wider than any grid here."""
        ramp = torch.linspace(-60.0, 60.0, size)
        return ramp.expand((2, CHANNELS, size) if self.axis == 1 else (CHANNELS, size)).clone()


def accepted():
    """Return all cases that a quantizer does not refuse; axis 1 is axis 0 in another shape."""
    kinds = [("weight", True, axis, FEW_BITS if axis is None else (2, 8)) for axis in (None, 0)]
    kinds += [("weight", True, 1, (2,))]
    kinds += [("input", signed, None, FEW_BITS) for signed in (True, False)]
    found = []
    for name, (role, signed, axis, widths) in itertools.product(sorted(QUANTIZERS), kinds):
        for bits in widths:
            case = Case(name, bits, signed, role, axis)
            try:
                case.build()
            except ConfigError:
                continue
            found.append(case)
    return found


CASES = accepted()
every = pytest.mark.parametrize("case", CASES, ids=str)
weights = pytest.mark.parametrize("case", [c for c in CASES if c.role == "weight"], ids=str)
to_compile = pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.bits == 2 and c.axis != 1 and c.signed == (c.role == "weight")],
    ids=str,
)
