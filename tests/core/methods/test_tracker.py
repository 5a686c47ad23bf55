"""The oscillation tracker against the paper's algorithm in float64."""

import numpy as np
import pytest
import torch
from torch import nn

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
        # Events at the third, fourth, sixth and eighth value; a quiet update keeps the direction.
        ([0, 1, 0, 1, 1, 0, 0, 1], [0, 0, 0.1, 0.19, 0.171, 0.2539, 0.22851, 0.305659]),
        # A jump of two levels is a move like others.
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
        asleep = step % 7 == 3  # without gradient there is no update of the layer
        if asleep:
            model[1].weight.grad = None
        optimizer.step()
        for index in naive:
            if not (asleep and index == 1):
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


@pytest.mark.parametrize("name", ["SGD", "SGDT"])
def test_only_updates_count(name):
    """Forwards of any number, evaluation and edited weights are no updates."""
    runs = []
    for busy in (False, True):
        model = layers()
        optimizer = optimizer_of(model, name, 30)
        tracker = build_method("tracker")
        attach([tracker], model, optimizer, 30)
        for step in range(30):
            if busy:
                model(torch.randn(2, 6)), model.eval()(torch.randn(2, 6)), model.train()
                with torch.no_grad():
                    kept = model[0].weight.clone()
                    model[0].weight.neg_()
                    model(torch.randn(2, 6))
                    model[0].weight.copy_(kept)
            at_random(model, step)
            optimizer.step()
        runs.append(tracker.state_dict())
    for key, track in runs[0].items():
        assert track["frequency"].any()
        for name_, tensor in track.items():
            assert torch.equal(tensor, runs[1][key][name_])


def test_what_cannot_be_tracked_is_refused():
    for options, key in (
        ({"momentum": 0.0}, "momentum"),
        ({"momentum": 1.1}, "momentum"),
        ({"max_bits": 9}, "max_bits"),
    ):
        with pytest.raises(ConfigError) as error:
            build_method("tracker", **options)
        assert error.value.key == key
    plain = nn.Linear(2, 2)
    with pytest.raises(ConfigError) as error:
        attach(["tracker"], plain, torch.optim.SGD(plain.parameters()), 1)
    assert error.value.key == "methods"
    model = one_weight(bits=3)
    with pytest.raises(ConfigError) as error:
        attach([build_method("tracker", max_bits=2)], model, torch.optim.SGD(model.parameters()), 1)
    assert error.value.key == "max_bits"
