#!/usr/bin/env python
"""Write a checkpoint's model in half precision, for shipping.

    tools/pack_checkpoint.py IN.pth OUT.pth

Convolution weights are stored as float16; biases, norm parameters and statistics stay float32
(small, and sensitive). Loading converts back to the model's own dtype.
"""

from __future__ import annotations

import os
import sys

import torch

from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.damage import read_checkpoint
from tr_det.runtime.files import written_aside


def pack(source: str, target: str) -> None:
    """Convert one checkpoint."""
    found = read_checkpoint(source)
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict):
        raise ValueError(
            f"{source}: not a checkpoint of a model (it holds no dictionary of tensors)"
        )
    packed = {key: value.half() if _is_weight(value) else value for key, value in model.items()}
    with written_aside(target) as aside, aside.open("wb") as file:
        torch.save({"model": packed, "__author__": "tr_det"}, file)
    print(f"{target}: {os.path.getsize(target) / 1e6:.1f} MB")


def _is_weight(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.dim() > 1


def main() -> None:
    """Read the command line."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with one_line_errors():
        pack(*sys.argv[1:])


if __name__ == "__main__":
    main()
