"""The oscillation tracker against the paper's algorithm in float64."""

import numpy as np
import pytest
import torch

from tests.core.methods.oscillation import (
    Oscillation,
    Written,
    at_random,
    codes_of,
    layers,
    one_weight,
    optimizer_of,
)
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
    assert seen == pytest.approx(frequency, abs=1e-7)


@pytest.mark.parametrize("name", ["SGD", "SGDT"])
def test_a_long_run_is_the_papers(name):
    steps, m = 300, 0.05
    model = layers()
    optimizer = optimizer_of(model, name, steps)
    tracker = build_method("tracker", momentum=m)
    attach([tracker], model, optimizer, steps)
    naive = {index: Oscillation(m) for index in (0, 1)}
    for index in naive:
        naive[index](codes_of(model[index]))
    for step in range(steps):
        at_random(model, step)
        without = step % 7 == 3  # no gradient, no update of the layer
        if without:
            model[1].weight.grad = None
        optimizer.step()
        for index in naive:
            if not (without and index == 1):
                naive[index](codes_of(model[index]))
    assert tracker.tracks.keys() == {"0.weight", "1.weight"}  # 8 bits are over max_bits
    for index, expected in naive.items():
        track = tracker.tracks[f"{index}.weight"]
        assert expected.events > 50
        np.testing.assert_allclose(track.frequency.numpy(), expected.f, atol=2e-6)
        np.testing.assert_array_equal(track.direction.numpy(), expected.direction)
        assert track.average is None
    frequencies = np.concatenate([expected.f.ravel() for expected in naive.values()])
    scalars = {key: value.item() for key, value in tracker.scalars().items()}
    assert scalars == {
        "tr/oscillating": pytest.approx((frequencies > 0.005).mean()),
        "tr/frequency": pytest.approx(frequencies.mean(), rel=1e-5),
    }


@pytest.mark.parametrize(("key", "value"), [("momentum", 0.0), ("momentum", 1.1), ("max_bits", 9)])
def test_other_options_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"^{key}={value}: must be"):
        build_method("tracker", **{key: value})


def test_too_few_bits_to_track_any_weight_are_refused():
    model = one_weight(bits=3)
    with pytest.raises(ConfigError, match=r"^max_bits=2: must be at least 3"):
        attach([build_method("tracker", max_bits=2)], model, torch.optim.SGD(model.parameters()), 1)
