"""`tie_scale` and `scale_output` against autograd's own product."""

import pytest
import torch
from torch.nn import functional as F

from tr_det.core.ops import scale_output, tie_scale


def conv(x, w):
    return F.conv2d(x, w, padding=1)


CASES = {"conv": (conv, (2, 3, 6, 5), (4, 3, 3, 3)), "linear": (F.linear, (5, 7, 4), (6, 4))}
every_case = pytest.mark.parametrize("case", CASES)


def leaves(case, dtype=torch.float64, scale=0.7):
    generator = torch.Generator().manual_seed(0)
    shapes = CASES[case][1:]
    x, w = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return [t.requires_grad_() for t in (x, w, torch.tensor(scale, dtype=dtype))]


def gradients(case, tied, scale=0.7, levels=1, dtype=torch.float64):
    function = CASES[case][0]
    x, w, s = leaves(case, dtype, scale)
    weight = tie_scale(w, s) if tied else w
    total = 0
    for level in range(levels):
        y = function(x * (level + 1), weight)
        y = scale_output(y, s) if tied else y * s
        total = total + y.square().sum() * (level + 1)
    total.backward()
    return y.detach(), x.grad, w.grad, s.grad


@every_case
@pytest.mark.parametrize("scale", [0.7, -1.3, 1e-6])
@pytest.mark.parametrize("levels", [1, 3])
def test_values_and_gradients_are_those_of_the_product(case, scale, levels) -> None:
    ours = gradients(case, True, scale, levels)
    plain = gradients(case, False, scale, levels)
    assert torch.equal(ours[0], plain[0])
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=0)


@every_case
def test_single_precision_is_exact_in_values_and_close_in_gradients(case) -> None:
    ours, plain = (gradients(case, tied, dtype=torch.float32) for tied in (True, False))
    assert torch.equal(ours[0], plain[0])
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_a_scale_of_zero_has_gradient_zero_and_nothing_is_nan() -> None:
    _, x, w, s = gradients("conv", True, scale=0.0)
    assert not any(t.any() or t.isnan().any() for t in (x, w, s))


@every_case
def test_the_unscaled_output_is_not_kept(case) -> None:
    function = CASES[case][0]
    x, w, s = leaves(case)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = scale_output(function(x, tie_scale(w, s)), s)
    assert {t.data_ptr() for t in kept} <= {t.data_ptr() for t in (x, w, s)}
    assert y.data_ptr() not in {t.data_ptr() for t in kept}


def test_weights_without_gradient_still_give_the_scale_its_gradient() -> None:
    expected = gradients("conv", False)[3]
    x, w, s = leaves("conv")
    scale_output(conv(x, tie_scale(w.detach(), s)), s).square().sum().backward()
    torch.testing.assert_close(s.grad, expected, rtol=1e-10, atol=0)
