import pytest
import torch

from tr_det.core import SGDT, QuantConfig, build_quantizer, quantize_model, tr_param_groups
from tr_det.training.watch import WeightWatcher, distances


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_codes_change_exactly_where_normalized_weights_pass_a_transition_point(bits):
    quantizer = build_quantizer("fixed_grid", bits=bits, signed=True)
    with torch.no_grad():
        quantizer.scale.fill_(0.37)
    x = torch.linspace(-0.6, 0.6, 4001)
    codes, units = quantizer.codes(x).int(), quantizer.normalized(x)
    passed = (units[:, None] > quantizer.transition_points()).sum(1)
    step = 2 if bits == 1 else 1
    assert torch.equal((codes - codes.min()) // step, passed.int())


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_distances_are_those_to_the_nearest_of_all_points(bits):
    quantizer = build_quantizer("fixed_grid", bits=bits, signed=True)
    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    by_hand = (quantizer.normalized(x)[:, None] - quantizer.transition_points()).abs().amin(1)
    torch.testing.assert_close(distances(quantizer, x), by_hand)


def test_a_watcher_sees_the_rate_that_the_optimizer_counts():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    quantize_model(model, QuantConfig(weight_bits=2, act_bits=32))
    optimizer = SGDT(tr_param_groups(model, lr=0.5), lr=0.5, total_steps=10)
    watcher = WeightWatcher(model)
    model(torch.randn(8, 20)).square().sum().backward()
    watcher.remember()
    optimizer.step()
    sight = watcher.look()
    rate = optimizer.transition_metrics().rate
    assert rate.min() > 0
    torch.testing.assert_close(sight.rate, rate)
    assert (sight.step_size >= sight.rate / 2 - 1e-7).all()  # a level is half apart at 2 bits
    assert watcher.names == ("0", "2")


def test_a_plain_model_has_nothing_to_watch():
    watcher = WeightWatcher(torch.nn.Linear(2, 2))
    watcher.remember()
    assert watcher.look().rate.shape == (0,)
