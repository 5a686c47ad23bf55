"""The rule "pi" by hand, and on a known plant: a rate proportional to the TALR."""

import math

import pytest
import torch

from tests.core.transition.feedback import feedback
from tr_det.core.transition import UPDATE_RULES, default_momentum, running_rate

BASE = 0.01


def simulate(rule, targets, rates, momentum):
    """Return the TALR and the running TR at each update, shape (updates, layers) each.

    Args:
        rule: name in UPDATE_RULES.
        targets: R_t, shape (updates, layers).
        rates: (update, TALR) -> the rate that the update causes.
        momentum: m.
    """
    talr = base = torch.full_like(targets[0], BASE)
    running = rate = torch.zeros_like(base)
    shown = []
    for t, target in enumerate(targets):
        previous, running = running, running_rate(running, rate, momentum)
        talr = UPDATE_RULES[rule](
            feedback(
                *(talr, running, target, base),
                previous_running=previous,
                previous_target=targets[max(t - 1, 0)],
                first_target=targets[0],
                momentum=momentum,
                correction=torch.full_like(base, 1.0 - momentum**t),
                previous_correction=torch.full_like(base, 1.0 - momentum ** max(t - 1, 0)),
            )
        )
        rate = rates(t, talr)
        shown.append(torch.stack([talr, running]))
    return torch.stack(shown, dim=1)


def tracking_error(rule, steps, sensitivity, momentum):
    """Return mean |K - R| / R_0 after the first tenth, over layers, on a cosine to zero.

    Args:
        rule: name in UPDATE_RULES.
        steps: length of the run.
        sensitivity: rate per unit of TALR, shape (layers,), relative to what the first target
            needs; a measured rate has a tenth of noise.
        momentum: m.
    """
    generator = torch.Generator().manual_seed(0)
    first = 2e-3
    cosine = 0.5 * (1 + torch.cos(math.pi * torch.arange(steps) / steps))
    targets = (first * cosine)[:, None].expand(-1, len(sensitivity))

    def rates(step, talr):
        noise = 1 + 0.1 * torch.randn(sensitivity.shape, generator=generator)
        return (sensitivity * first / BASE * talr * noise).clamp(0, 1)

    running = simulate(rule, targets, rates, momentum)[1]
    return ((running - targets).abs() / first)[steps // 10 :].mean().item()


LAYERS = torch.logspace(-1.0, 1.0, 9)  # a layer needs from ten times to a tenth of the base LR


@pytest.mark.parametrize("steps", [300, 3_000])
def test_pi_tracks_layers_of_any_sensitivity(steps):
    assert tracking_error("pi", steps, LAYERS, default_momentum(steps)) < 0.05


def test_the_papers_settings_do_not_track_a_short_run():
    assert tracking_error("additive", 300, LAYERS, momentum=0.99) > 0.2


def test_pi_reaches_a_layer_that_needs_a_thousand_times_the_base_learning_rate():
    """That is the TALR's upper bound, MAX_TALR."""
    assert tracking_error("pi", 3_000, torch.tensor([1e-3]), default_momentum(3_000)) < 0.1


@pytest.mark.parametrize(
    ("steps", "momentum"), [(1, 0.8), (200, 0.8), (3_000, 0.985), (90_000, 0.99)]
)
def test_the_momentum_follows_the_length_of_the_run(steps, momentum):
    assert default_momentum(steps) == pytest.approx(momentum)


def talrs(targets, rates, momentum):
    """Return the TALR of "pi" at each update; ``rates[t]`` is the rate that update t causes."""
    rates = torch.tensor(rates)[:, None]
    run = simulate("pi", torch.tensor(targets)[:, None], lambda t, talr: rates[t], momentum)
    return run[0, :, 0].tolist()


def test_the_first_updates_are_the_formula():
    targets, m = [0.02, 0.018, 0.015], 0.75
    f = 0.01 * targets[0]
    mean = {1: 0.03, 2: (m * 0.03 + 0.01) / (m + 1.0)}  # of the rates so far, newest weighs most
    error = {t: math.log((targets[t] + f) / (mean[t] + f)) for t in (1, 2)}
    feed = {t: math.log((targets[t] + f) / (targets[t - 1] + f)) for t in (1, 2)}
    first = BASE * math.exp(feed[1] + 0.25 * error[1])
    second = first * math.exp(feed[2] + 0.25 * error[2] + (error[2] - error[1]))
    assert talrs(targets, [0.03, 0.01, 0.0], m) == pytest.approx([BASE, first, second], rel=1e-5)


@pytest.mark.parametrize(("rate", "bound"), [(0.0, 1e3), (1.0, 1e-6)])
def test_the_talr_stays_within_its_bounds(rate, bound):
    assert talrs(800 * [0.01], 800 * [rate], 0.8)[-1] == pytest.approx(BASE * bound, rel=1e-5)


def test_one_update_changes_the_logarithm_of_the_talr_by_half_at_most():
    values = torch.tensor(talrs(20 * [0.01], 10 * [0.0, 1.0], momentum=0.0))
    changes = values.log().diff()
    assert [changes.max(), changes.min()] == pytest.approx([0.5, -0.5], rel=1e-5)


@pytest.mark.parametrize(("target", "share"), [(1.0, 1.0), (0.0, 0.01 / 1.01), (0.5, 0.51 / 1.01)])
def test_before_the_first_rate_the_talr_is_the_base_scaled_by_the_target(target, share):
    """So a target that warms up, or a layer that comes alive late, does not start at full speed."""
    zero, one = torch.zeros(1), torch.ones(1)
    others = {"previous_target": one, "first_target": one, "momentum": 0.8}
    others |= {"correction": zero, "previous_correction": zero}
    start = feedback(BASE * one, zero, target * one, BASE * one, **others)
    assert UPDATE_RULES["pi"](start).item() == pytest.approx(BASE * share)
