"""The TR-scheduled optimizers of Table S5: torch's, with `TransitionScheduled` before them.

Constructor: ``Opt(groups, lr=..., total_steps=T, tr_factor=1e-3, ...)`` with the ``tr_*`` arguments
of `TransitionScheduled` and the torch optimizer's own. Groups without a ``quantizer`` train exactly
like the torch optimizer.
"""

from __future__ import annotations

import torch

from tr_det.core.optim.device import SGDDeviceUpdate
from tr_det.core.optim.scheduled import TransitionScheduled


class SGDT(TransitionScheduled, torch.optim.SGD):
    """TR-scheduled SGD; the direction is the momentum buffer with weight decay folded in."""

    _device_update = SGDDeviceUpdate


class AdamT(TransitionScheduled, torch.optim.Adam):
    """TR-scheduled Adam; the direction is m / (sqrt(v) + eps), bias-corrected."""


class AdamWT(TransitionScheduled, torch.optim.AdamW):
    """TR-scheduled AdamW; ``tr_decay`` says what multiplies the decoupled decay."""


class NAdamT(TransitionScheduled, torch.optim.NAdam):
    """TR-scheduled NAdam."""


class AdamaxT(TransitionScheduled, torch.optim.Adamax):
    """TR-scheduled Adamax."""


class RMSpropT(TransitionScheduled, torch.optim.RMSprop):
    """TR-scheduled RMSprop; the paper uses momentum 0.9 (supplement S2.4)."""


class AdagradT(TransitionScheduled, torch.optim.Adagrad):
    """TR-scheduled Adagrad."""
