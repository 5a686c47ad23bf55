"""TALR curves of an earlier run, to be played back instead of controlled.

What SGDT gives each layer over a run is a learning rate. Played back in another run, it says how
much of TR scheduling is the curves, and how much the control.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from tr_det.core.methods.telemetry import LAYERS
from tr_det.core.transition.schedule import TargetSchedule
from tr_det.runtime.metrics import METRICS, read_records

_AFTER = "/talr"


def replayed_talr(cfg: CfgNode) -> dict[str, list[float]]:
    """Return the TALRs of ``SOLVER.TR.REPLAY``: name of a weight -> ``SOLVER.MAX_ITER`` numbers.

    Between two records they are on a line.

    Raises:
        ValueError: the folder has no curves, or those of a run of another length.
    """
    settings, total = cfg.SOLVER.TR, cfg.SOLVER.MAX_ITER
    path = Path(settings.REPLAY) / METRICS
    records = [r for r in read_records(path) if any(key.endswith(_AFTER) for key in r)]
    if not records:
        raise ValueError(f"SOLVER.TR.REPLAY={settings.REPLAY}: {path} has no TALR curves")
    made = records[-1]["iteration"] + 1
    if made != total:
        raise ValueError(
            f"SOLVER.TR.REPLAY={settings.REPLAY}: is a run of {made} iterations; must be one of "
            f"SOLVER.MAX_ITER={total}"
        )
    curves = {}
    for key in records[-1]:
        if key.startswith(LAYERS) and key.endswith(_AFTER):
            own = [record for record in records if key in record]
            steps, values = ([record[what] for record in own] for what in ("iteration", key))
            curve = np.interp(np.arange(total), steps, values)
            if settings.REPLAY_AS == "cosine":
                shape = TargetSchedule("cosine", total)
                curve = 2 * curve.mean() * np.array([shape(step) for step in range(total)])
            curves[f"{key[len(LAYERS) : -len(_AFTER)]}.weight"] = curve.tolist()
    return curves
