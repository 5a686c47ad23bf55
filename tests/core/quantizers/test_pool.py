"""Samples of calibration data."""

import pytest
import torch

from tr_det.core.quantizers.pool import SAMPLE, alone


@pytest.mark.parametrize("shape", [(16, 64, 32, 32), (512, 512, 3, 3), (7, 5), (0,)])
def test_a_sample_has_elements_of_every_place(shape):
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    sample = alone(x, "sample")
    assert min(x.numel(), SAMPLE // 2) <= len(sample) <= SAMPLE
    places = torch.unravel_index(sample, shape)
    assert [len(place.unique()) for place in places] == list(shape)
