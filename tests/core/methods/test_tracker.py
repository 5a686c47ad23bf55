"""The oscillation tracker against the paper's algorithm in float64."""

import pytest
import torch

from tests.core.methods.oscillation import Written, one_weight
from tr_det.core import ConfigError, attach, build_method


@pytest.mark.parametrize(
    ("values", "frequency"),
    [
        # Events at the third, fourth, sixth and eighth value; no move keeps the direction.
        ([0, 1, 0, 1, 1, 0, 0, 1], [0, 0, 0.1, 0.19, 0.171, 0.2539, 0.22851, 0.305659]),
        # A jump of two levels counts like any move.
        ([0, 2, 0, 0, 0], [0, 0, 0.1, 0.09, 0.081]),
        ([0, 1, 2, 3, 3, 2], [0, 0, 0, 0, 0, 0.1]),
    ],
)
def test_frequencies_worked_out_by_hand(values, frequency):
    model = one_weight()
    optimizer = Written(model[0].weight, values[1:])
    tracker = build_method("tracker", momentum=0.1)
    attach([tracker], model, optimizer, len(values) - 1)
    seen = [0.0]
    for _ in values[1:]:
        optimizer.step()
        seen.append(tracker.tracks["0.weight"].frequency.item())
        assert tracker.tracks["0.weight"].average is None
    assert seen == pytest.approx(frequency, abs=1e-7)


@pytest.mark.parametrize(("key", "value"), [("momentum", 0.0), ("momentum", 1.1), ("max_bits", 9)])
def test_other_options_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"^{key}={value}: must be"):
        build_method("tracker", **{key: value})


def test_too_few_bits_to_track_any_weight_are_refused():
    model = one_weight(bits=3)
    with pytest.raises(ConfigError, match=r"^max_bits=2: must be at least 3"):
        attach([build_method("tracker", max_bits=2)], model, torch.optim.SGD(model.parameters()), 1)
