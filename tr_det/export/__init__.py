"""Export with proof: what was trained is what runs.

`Predictor` runs an exported file and needs no torch; what exports a model is imported from its own
modules (`tr_det.export.model`, `tr_det.export.packed`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tr_det.export.predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    # Lazily: some modules of this room are read where there is not even NumPy.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tr_det.export.predictor import Predictor

    return Predictor
