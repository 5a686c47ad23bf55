"""The run that another one starts from."""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from pathlib import Path

from tr_det.classification.config.keys import ClassifierConfig
from tr_det.classification.config.reading import load_config
from tr_det.core.errors import check
from tr_det.core.nn.config import FULL_PRECISION

_SAME = (
    "model.name",
    "model.options",
    *(
        f"data.{key}"
        for key in ("name", "image_size", "mean", "std", "interpolation", "crop_ratio")
    ),
)
"""Keys that a pretraining shares."""


def pretraining_of(config: ClassifierConfig) -> ClassifierConfig | None:
    """Return the config of the run that ``model.pretraining`` names, if it names one.

    Data folder, device and loader processes are those of ``config``. So are bits and quantizer of
    the inputs where the pretraining quantizes only them (W32A1 for W1A1).

    Raises:
        ValueError: the network, the data or the bits would not fit; names the key.
    """
    path = config.model.pretraining
    if not path:
        return None
    _check_chain(path)
    first = load_config(path)
    if first.quant.weight_bits == FULL_PRECISION and first.quant.enabled:
        bits = config.quant.act_bits
        if bits != FULL_PRECISION:
            first = load_config(path, ["quant.bits", f"W{FULL_PRECISION}A{bits}"])
            inputs = {key: getattr(config.quant, key) for key in ("act_quantizer", "act_options")}
            quant = dataclasses.replace(first.quant, **inputs)
            first = dataclasses.replace(first, quant=quant)
    source = f"model.pretraining {path}"
    for key in _SAME:
        value, wanted = (attrgetter(key)(c) for c in (config, first))
        allowed = f"{wanted!r} as in {source}; give another pretraining, or '' and model.weights"
        check(key, value, value == wanted, allowed)
    own, held_out = config.data.hold_out, first.data.hold_out
    allowed = f"0 or {held_out} as in {source}, which has trained on the other images"
    check("data.hold_out", own, own in (0, held_out), allowed)
    for kind in ("weight", "act"):
        value, trained = (getattr(c.quant, f"{kind}_bits") for c in (config, first))
        fits = trained in (FULL_PRECISION, value)
        allowed = f"reached from {first.quant.bits}, at which {source} is trained"
        check("quant.bits", config.quant.bits, fits, allowed)
        key = f"{kind}_quantizer"
        value, wanted = (getattr(c.quant, key) for c in (config, first))
        fits = trained == FULL_PRECISION or value == wanted
        check(f"quant.{key}", value, fits, f"{wanted!r} as in {source}")
    folder, other = (Path(c.run.output_dir) for c in (config, first))
    is_other = folder.resolve() != other.resolve()
    check("run.output_dir", str(folder), is_other, "other than model.pretraining's")
    data = {key: getattr(config.data, key) for key in ("root", "download", "workers")}
    return dataclasses.replace(
        first,
        data=dataclasses.replace(first.data, **data),
        run=dataclasses.replace(first.run, device=config.run.device),
    )


def _check_chain(path: str) -> None:
    """Raise ConfigError if a pretraining builds on itself."""
    seen: list[str] = []
    while path:
        check("model.pretraining", path, path not in seen, "a config that does not build on itself")
        seen.append(path)
        path = load_config(path).model.pretraining
