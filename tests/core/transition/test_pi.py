"""Our TALR rule on a plant that is known: a rate proportional to the TALR, differing by layer."""

import math

import pytest
import torch

from tr_det.core.transition import UPDATE_RULES, Feedback, default_momentum, running_rate


def tracking_error(rule, steps, sensitivity, momentum=None, noise=0.1, gain=None):
    """Return mean |K - R| / R_0 after the first tenth, over layers, on a cosine to zero.

    Args:
        rule: name in UPDATE_RULES.
        steps: length of the run.
        sensitivity: rate per unit of TALR, one per layer, relative to what the first target needs.
        momentum: m; None derives it.
        noise: relative standard deviation of a measured rate.
        gain: eta; None is the base learning rate.
    """
    momentum = default_momentum(steps) if momentum is None else momentum
    generator = torch.Generator().manual_seed(0)
    base, first = 0.01, 2e-3
    talr = torch.full_like(sensitivity, base)
    running = rate = torch.zeros_like(sensitivity)
    target = first_target = torch.full_like(sensitivity, first)
    errors = []
    for step in range(steps):
        previous_running, previous_target = running, target
        target = first_target * 0.5 * (1 + math.cos(math.pi * step / steps))
        running = running_rate(running, rate, momentum)
        talr = UPDATE_RULES[rule](
            Feedback(
                talr=talr,
                running=running,
                target=target,
                previous_running=previous_running,
                previous_target=previous_target,
                first_target=first_target,
                base=torch.full_like(talr, base),
                gain=torch.full_like(talr, base if gain is None else gain),
                momentum=momentum,
                mass=torch.full_like(talr, 1.0 - momentum**step),
                previous_mass=torch.full_like(talr, 1.0 - momentum ** (step - 1) if step else 0.0),
            )
        )
        shake = 1 + noise * torch.randn(sensitivity.shape, generator=generator)
        rate = (sensitivity * first / base * talr * shake).clamp(0, 1)
        if step >= steps // 10:
            errors.append(((running - target).abs() / first).mean())
    return torch.stack(errors).mean().item()


LAYERS = torch.logspace(-1.0, 1.0, 9)  # a layer needs from ten times to a tenth of the base LR


@pytest.mark.parametrize("steps", [300, 3_000])
def test_pi_tracks_layers_of_any_sensitivity(steps):
    assert tracking_error("pi", steps, LAYERS) < 0.05


def test_the_papers_settings_do_not_track_a_short_run():
    assert tracking_error("additive", 300, LAYERS, momentum=0.99) > 0.2


def test_pi_reaches_a_layer_that_needs_a_thousand_times_the_base_learning_rate():
    """That is the TALR's upper bound, MAX_TALR."""
    assert tracking_error("pi", 3_000, torch.tensor([1e-3])) < 0.1


@pytest.mark.parametrize("steps", [1, 10, 200])
def test_short_runs_get_a_quick_running_rate(steps):
    assert default_momentum(steps) == pytest.approx(0.8)


def test_long_runs_get_the_papers_momentum():
    assert default_momentum(90_000) == pytest.approx(0.99)
    assert default_momentum(3_000) == pytest.approx(0.985)


@pytest.mark.parametrize(("target", "share"), [(1.0, 1.0), (0.0, 0.01 / 1.01), (0.5, 0.51 / 1.01)])
def test_without_measurement_the_talr_is_the_base_scaled_by_the_targets_course(target, share):
    """So a target that warms up, or a layer that comes alive late, does not start at full speed."""
    zero, one = torch.zeros(1), torch.ones(1)
    feedback = Feedback(
        talr=0.01 * one,
        running=zero,
        target=target * one,
        previous_running=zero,
        previous_target=one,
        first_target=one,
        base=0.01 * one,
        gain=one,
        momentum=0.8,
        mass=zero,
        previous_mass=zero,
    )
    assert UPDATE_RULES["pi"](feedback).item() == pytest.approx(0.01 * share)
