"""Convolutions whose gradients are unset in bfloat16 on a CPU are refused, and no others."""

import pytest
import torch
from torch import nn

from tr_det.core import ConfigError
from tr_det.runtime.bfloat16 import refuse_unset_gradients


@pytest.mark.parametrize(
    ("width", "options", "refused"),
    [
        (1, {"stride": 2, "padding": 1}, True),
        (3, {"stride": 4, "padding": 1}, True),
        (2, {"stride": 2, "padding": 1}, False),
        (1, {"stride": 1, "padding": 1}, False),
        (3, {"stride": 4}, False),
        (1, {"stride": 2, "padding": 1, "groups": 4}, False),
    ],
)
def test_only_what_is_narrower_than_its_stride_is_refused(width, options, refused):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, **options))
    refuse_unset_gradients(model, "run.precision", "bfloat16")
    images = torch.zeros(1, 4, 4, width)
    with torch.no_grad():
        model(images)
    if refused:
        with pytest.raises(ConfigError, match=r"^run\.precision='bfloat16': .* of 0 unset"):
            model(images)
    else:
        model(images)
