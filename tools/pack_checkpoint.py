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

from tr_det.runtime.files import written_aside


def pack(source: str, target: str) -> None:
    """Convert one checkpoint."""
    model = torch.load(source, map_location="cpu", weights_only=True)["model"]
    packed = {
        key: value.half() if value.dtype == torch.float32 and value.dim() > 1 else value
        for key, value in model.items()
    }
    with written_aside(target) as aside, aside.open("wb") as file:
        torch.save({"model": packed, "__author__": "tr_det"}, file)
    print(f"{target}: {os.path.getsize(target) / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    pack(*sys.argv[1:])
