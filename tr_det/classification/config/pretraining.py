"""The run that another one starts from."""

from __future__ import annotations

import dataclasses

from tr_det.classification.config.file import load_config
from tr_det.classification.config.keys import ClassifierConfig
from tr_det.core.errors import check
from tr_det.core.nn.config import FULL_PRECISION


def pretraining_of(config: ClassifierConfig) -> ClassifierConfig | None:
    """Return the config of the run that ``model.pretraining`` names, if it names one.

    It takes the place of the data, the device and the loader's processes from the run that it is
    for, and the bits and quantizer of the inputs where it quantizes only them (W32A1 for W1A1).

    Raises:
        ValueError: its result would not fit; names the key.
    """
    path = config.model.pretraining
    if not path:
        return None
    first = load_config(path)
    if first.quant.weight_bits == FULL_PRECISION and first.quant.enabled:
        bits = config.quant.act_bits
        if bits != FULL_PRECISION:
            first = load_config(path, ["quant.bits", f"W{FULL_PRECISION}A{bits}"])
            inputs = {key: getattr(config.quant, key) for key in ("act_quantizer", "act_options")}
            quant = dataclasses.replace(first.quant, **inputs)
            first = dataclasses.replace(first, quant=quant)
    for key in ("model.name", "model.options", "data.name", "data.image_size"):
        section, name = key.split(".")
        ours, theirs = (getattr(getattr(c, section), name) for c in (config, first))
        allowed = f"{theirs!r} as in model.pretraining {path}; give another pretraining, or '' and"
        check(key, ours, ours == theirs, f"{allowed} model.weights")
    for kind in ("weight", "act"):
        ours, theirs = (getattr(c.quant, f"{kind}_bits") for c in (config, first))
        allowed = f"reached from {first.quant.bits}, at which model.pretraining {path} is trained"
        check("quant.bits", config.quant.bits, theirs in (FULL_PRECISION, ours), allowed)
        key = f"{kind}_quantizer"
        ours, wanted = (getattr(c.quant, key) for c in (config, first))
        same = theirs == FULL_PRECISION or ours == wanted
        check(f"quant.{key}", ours, same, f"{wanted!r} as in model.pretraining {path}")
    own = config.run.output_dir
    check("run.output_dir", own, own != first.run.output_dir, "other than model.pretraining's")
    data = {key: getattr(config.data, key) for key in ("root", "download", "workers")}
    return dataclasses.replace(
        first,
        data=dataclasses.replace(first.data, **data),
        run=dataclasses.replace(first.run, device=config.run.device),
    )
