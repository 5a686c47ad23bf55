"""A quantized checkpoint says so, and stops Detectron2 from loading it into something else.

Its latent weights have the names of full-precision ones: Detectron2 would load them into such a
model with no more than a warning about keys, and score what nobody trained. So one entry of the
saved model is a text, at which Detectron2's own checkpointer stops: without `tr_det.detection`
nothing would be quantized. With it (`label_checkpoints`) the text is taken out, and quantizers that
have no place in the model are an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from tr_det.runtime.checkpoint_keys import INPUT, LABEL, QUANTIZER_STATE, WEIGHT, shortened


def labelled(state: dict[str, Any]) -> dict[str, Any]:
    """Add the entry to a model's ``state_dict()``, if the model is quantized, and return it.

    Detectron2 prints its key; its value says how the model is quantized.
    """
    kinds: Counter[str] = Counter()
    for part in (WEIGHT, INPUT):
        found = [value for key, value in state.items() if key.endswith(f"{part}_extra_state")]
        kinds.update(f"{part.strip('.')} {bytes(v.tolist()).decode().strip()}" for v in found)
    how = "; ".join(f"{kind} in {count} layers" for kind, count in sorted(kinds.items()))
    if how:
        state[LABEL] = how
    return state


def check_quantized_alike(file: str, unexpected: Iterable[str], model: nn.Module) -> None:
    """Raise ValueError if a checkpoint quantizes layers that a model has in full precision.

    Args:
        file: the checkpoint.
        unexpected: its keys that the model does not have.
        model: the model.
    """
    layers = dict(model.named_modules())
    owners = {
        key.partition(kind)[0] for key in unexpected for kind in QUANTIZER_STATE if kind in key
    }
    plain = sorted(name for name in owners if name in layers)
    if plain:
        raise ValueError(
            f"{file} is quantized, in {len(plain)} layers that the model has in full precision "
            f"({shortened(plain, 3)}); load it by the config that it was trained with "
            "(MODEL.QUANT.ENABLED True), or convert it by tools/dequantize.py"
        )


def label_checkpoints() -> None:
    """Let Detectron2's checkpointer write the entry, and refuse what does not fit.

    So its own tools, its predictor and LazyConfigs do; a second call changes nothing.
    """
    if getattr(DetectionCheckpointer, "labels", False):
        return
    save, load_file = DetectionCheckpointer.save, DetectionCheckpointer._load_file
    log_keys = DetectionCheckpointer._log_incompatible_keys

    def labelling_save(self: Any, name: str, **kwargs: Any) -> None:
        save(self, name, **{"model": labelled(self.model.state_dict()), **kwargs})

    def unlabelling_load_file(self: Any, filename: str) -> Any:
        self.loaded_file = filename
        loaded = load_file(self, filename)
        loaded["model"].pop(LABEL, None)
        return loaded

    def checked_keys(self: Any, incompatible: Any) -> None:
        check_quantized_alike(self.loaded_file, incompatible.unexpected_keys, self.model)
        log_keys(self, incompatible)

    DetectionCheckpointer.labels = True
    DetectionCheckpointer.loaded_file = "the checkpoint"  # where a subclass reads a file itself
    DetectionCheckpointer.save = labelling_save
    DetectionCheckpointer._load_file = unlabelling_load_file
    DetectionCheckpointer._log_incompatible_keys = checked_keys
