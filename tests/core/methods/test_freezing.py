"""Freezing against the paper's algorithm in float64."""

import math

import numpy as np
import pytest
import torch
from small_runs import through_file

from tests.core.methods.oscillation import (
    Oscillation,
    Recorder,
    Written,
    at_random,
    codes_of,
    layers,
    one_weight,
    optimizer_of,
)
from tr_det.core import ConfigError, attach, build_method
from tr_det.core.quantizers import FREE
from tr_det.core.weight_stats import held_share

VALUES = [0, 1, 0, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("use_average", "frequency", "codes", "events", "held"),
    [
        (
            True,
            [0, 0, 0.1, 0.19, 0.271, 0.2439, 0.21951, 0.19756],
            [0, 1, 0, 1, 0, 0, 0, 0],
            [0, 0, 1, 2, 3, 3, 3, 3],  # the third, at step 4: the jump to the level of the hold
            0,
        ),
        (
            False,
            [0, 0, 0.1, 0.19, 0.171, 0.1539, 0.13851, 0.124659],
            [0, 1, 0, 1, 1, 1, 1, 1],
            [0, 0, 1, 2, 2, 2, 2, 2],
            1,
        ),
    ],
)
def test_a_weight_worked_out_by_hand(use_average, frequency, codes, events, held):
    model = one_weight()
    weight, quantizer = model[0].weight, model[0].weight_quantizer
    optimizer = Written(weight, VALUES[1:])
    tracker = build_method("tracker", momentum=0.1)
    freezing = build_method("freezing", threshold=0.15, use_average=use_average)
    recorder = Recorder()
    attach([freezing, tracker, recorder], model, optimizer, 7)
    average = [0, 0.1, 0.09, 0.181, 0.1629, 0.14661, 0.13195, 0.11875]
    counted = before = 0
    for step in range(1, 8):
        optimizer.step()
        track = tracker.tracks["0.weight"]
        f = track.frequency.item()
        counted, before = counted + round((f - 0.9 * before) / 0.1), f
        assert f == pytest.approx(frequency[step], abs=1e-5)
        assert counted == events[step]
        assert recorder.codes[-1]["0.weight"].item() == codes[step]
        if use_average:
            assert track.average.item() == pytest.approx(average[step], abs=1e-5)
        else:
            assert track.average is None
        frozen = step >= 3
        assert (quantizer.held is not None and quantizer.held.item() != FREE) == frozen
        assert quantizer(weight).item() == (held if frozen else VALUES[step])


@pytest.mark.parametrize("name", ["SGD", "SGDT"])
@pytest.mark.parametrize("average_and_resume", [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize(
    ("first", "last", "start"), [(0.1003, None, 0.0), (0.16, 0.0503, 0.2517), (0.16, 0.0503, 0.6)]
)
def test_a_long_run_matches_the_papers_algorithm(name, average_and_resume, first, last, start):
    """Held codes survive momentum, decay and a resume; both counts of the rate omit them."""
    use_average, resumed = average_and_resume
    steps, m = 300, 0.02
    begin = start * steps

    def threshold_at(t):
        if t < begin:
            return 0.0
        if last is None:
            return first
        return last + (first - last) * (1 + math.cos(math.pi * (t - begin) / (steps - begin))) / 2

    def run(*saved):
        model = layers()
        optimizer = optimizer_of(model, name, steps)
        tracker = build_method("tracker", momentum=m)
        options = {"threshold": first, "threshold_final": last, "start": start}
        freezing = build_method("freezing", use_average=use_average, **options)
        attached = attach([tracker, freezing], model, optimizer, steps)
        for part, state in zip((model, optimizer), saved):
            part.load_state_dict(state)
        return model, optimizer, tracker, attached

    model, optimizer, tracker, attached = run()
    naive = [Oscillation(m, use_average=use_average) for _ in range(2)]
    codes = [expected(codes_of(layer), threshold_at(0)) for expected, layer in zip(naive, model)]
    closest, when, moved = 1.0, [], np.zeros(2, int)
    for step in range(steps):
        if resumed and step == 150:
            saved = through_file([model.state_dict(), optimizer.state_dict()])
            model, optimizer, tracker, attached = run(*saved)
        at_random(model, step)
        without = step + 1 in (75, 76, 180)  # no gradient at t_0 (76 or 180), nor at 75
        if without:
            model[1].weight.grad = None
        optimizer.step()
        threshold = threshold_at(step + 1)
        for index, expected in enumerate(naive):
            layer, free = model[index], ~expected.frozen
            if without and index == 1:
                if threshold and expected.average is None:
                    expected.average = codes_of(layer)  # as a forward pass would see them
                continue
            before, after = codes[index], expected(codes_of(layer), threshold)
            codes[index] = after
            moved[index] += (codes_of(layer) != after).sum()
            when += [step + 1] * int((expected.frozen & free).sum())
            if threshold:
                closest = min(closest, np.abs(expected.f - threshold)[free].min(initial=1.0))
            if name == "SGDT":
                rate = ((after != before) & free).sum() / max(free.sum(), 1)
                group = [g for g in optimizer.param_groups if "quantizer" in g][index]
                assert group["transition_rate"].item() == pytest.approx(rate)
            held = layer.weight_quantizer.held
            held = np.full(free.shape, FREE) if held is None else held.numpy()
            np.testing.assert_array_equal(held, np.where(expected.frozen, expected.at, FREE))
    # No f is so near the threshold that float32 and float64 could decide differently.
    assert closest > 3e-7
    assert (moved > 20).all()  # latent weights of held ones still move
    assert min(when) >= begin
    assert len([t for t in when if t > begin + 20]) > 5
    for index, expected in enumerate(naive):
        track, layer = tracker.tracks[f"{index}.weight"], model[index]
        assert 0.1 < expected.frozen.mean() < 1
        np.testing.assert_allclose(track.frequency.numpy(), expected.f, atol=2e-6)
        np.testing.assert_array_equal(track.direction.numpy(), expected.direction)
        if use_average:
            np.testing.assert_allclose(track.average.numpy(), expected.average, atol=1e-5)
        scale = layer.weight_quantizer.scale.item()
        shown = np.where(expected.frozen, expected.at, codes_of(layer)) * scale
        weight = layer.weight.detach().requires_grad_()
        out = layer.weight_quantizer(weight)
        out.sum().backward()
        np.testing.assert_allclose(out.detach().numpy(), shown, rtol=1e-6, atol=1e-7)
        assert not weight.grad.numpy()[expected.frozen].any()
    assert model[2].weight_quantizer.held is None  # 8-bit weights are not tracked
    share = sum(e.frozen.sum() for e in naive) / sum(layer.weight.numel() for layer in model)
    assert held_share(attached.codes.weights()).item() == pytest.approx(share)
    assert tracker.tracks.keys() == {"0.weight", "1.weight"}
    frequencies = np.concatenate([expected.f.ravel() for expected in naive])
    assert {key: value.item() for key, value in tracker.scalars().items()} == {
        "tr/oscillating": pytest.approx((frequencies > 0.005).mean()),
        "tr/frequency": pytest.approx(frequencies.mean(), rel=1e-5),
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("threshold", 0.0), ("threshold_final", 0.0), ("start", 1.0), ("use_average", 1)],
)
def test_other_options_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"^{key}={value}: must be"):
        build_method("freezing", **{key: value})


@pytest.mark.parametrize(("key", "first"), [("threshold", 0.1), ("threshold_final", 0.2)])
def test_a_threshold_not_above_the_trackers_momentum_is_refused(key, first):
    model = one_weight()
    freezing = build_method("freezing", **{"threshold": first, key: 0.1})
    methods = [build_method("tracker", momentum=0.1), freezing]
    with pytest.raises(ConfigError, match=f"^{key}=0.1: must be above the tracker's momentum"):
        attach(methods, model, torch.optim.SGD(model.parameters()), 1)
