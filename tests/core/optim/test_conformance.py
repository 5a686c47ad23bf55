"""TR-scheduled optimizers with every quantizer, on a device, compiled, and in other layouts."""

import contextlib
import copy
import itertools

import pytest
import torch
from small_runs import (
    NAMES,
    VARIANTS,
    loss,
    pair,
    tr_group,
    tr_groups,
    train,
)
from torch import nn

import tr_det.core
from tr_det.core import (
    QUANTIZERS,
    ConfigError,
    QuantConfig,
    attach,
    quantize_model,
    tr_param_groups,
)

every_optimizer = pytest.mark.parametrize("name", NAMES)


def configs():
    """Return what every quantizer can do, for weights, for inputs or for both."""
    made = set()
    for name, bits in itertools.product(sorted(QUANTIZERS), (1, 2, 4, 8)):
        accepted = {}
        for key in ("weight_quantizer", "act_quantizer"):
            with contextlib.suppress(ConfigError):
                QuantConfig(weight_bits=bits, act_bits=bits, **{key: name})
                accepted[key] = name
        made.add(QuantConfig(weight_bits=bits, act_bits=bits, **accepted))
    return sorted(made, key=repr)


CASES = [
    *((config, "SGDT", "pi") for config in configs()),
    *zip(configs(), itertools.cycle(NAMES[1:]), itertools.cycle(["additive", "pi"]), strict=False),
]


@pytest.mark.parametrize(
    ("config", "name", "update"),
    CASES,
    ids=lambda c: c if isinstance(c, str) else f"{c.weight_quantizer}-{c.act_quantizer}",
)
def test_the_groups_show_what_happened_to_the_codes(config, name, update) -> None:
    """The rate, the running rate and the bounds of the TALR, against codes taken from outside."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    quantize_model(model, config)
    lr = 0.5 if name == "SGDT" else 0.01
    optimizer = getattr(tr_det.core, name)(
        tr_param_groups(model, lr), lr=lr, total_steps=12, tr_momentum=0.5, tr_update=update
    )
    attach([], model, optimizer, 12)
    layers = model[1], model[3]
    running = [0.0, 0.0]
    moved = 0.0
    for step in range(12):
        optimizer.zero_grad()
        loss(model, step).backward()
        quantizers = [copy.deepcopy(layer.weight_quantizer) for layer in layers]  # lsbq refits
        before = [q.codes(layer.weight) for q, layer in zip(quantizers, layers, strict=True)]
        shown = [group["transition_rate"].item() for group in tr_groups(optimizer)]
        optimizer.step()
        for index, layer in enumerate(layers):
            group = tr_groups(optimizer)[index]
            codes = quantizers[index].codes(layer.weight)
            share = (codes != before[index]).double().mean().item()
            running[index] = 0.5 * running[index] + 0.5 * shown[index]
            assert group["transition_rate"].item() == pytest.approx(share)
            assert group["running_tr"].item() == pytest.approx(running[index], abs=1e-7)
            assert 0 <= group["talr"].item() < 1e3
            moved += share
    assert moved > 0


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_device_reaches_the_same_numbers_by_another_route(name, options, request) -> None:
    """On a device g_t is computed first, then multiplied by U_t."""
    host = pair(name, tr_update="pi", **options)
    train(*host, range(8))
    request.getfixturevalue("like_a_device")
    device = pair(name, tr_update="pi", **options)
    train(*device, range(8))
    weights = (list(model.parameters()) for model, _ in (host, device))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(tr_groups(host[1]), tr_groups(device[1]), strict=True):
        assert ours["talr"].item() == pytest.approx(theirs["talr"].item(), rel=1e-4)
        assert ours["transition_rate"] == theirs["transition_rate"]
        for key in ("lr", "weight_decay", "fused"):
            assert ours.get(key) == theirs.get(key)


def test_a_compiled_model_trains_like_the_eager_one() -> None:
    eager, compiled = pair(), pair()
    train(*eager, range(6))
    train(torch.compile(compiled[0], backend="aot_eager", fullgraph=True), compiled[1], range(6))
    weights = (list(model.parameters()) for model, _ in (eager, compiled))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def conv_run(name, steps, layout="flat", start=None):
    """Return weight and optimizer after steps in a memory layout; ``start``: of an earlier run."""

    def laid_out(values):
        if layout == "slice":
            return torch.zeros(8, 6, 3, 3)[:, :4].copy_(values)
        return values.to(memory_format=torch.channels_last) if layout == "last" else values

    def random(seed):
        return torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(seed))

    group = tr_group(laid_out(random(0)))
    (weight,) = group["params"]
    options = {"momentum": 0.9} if name in ("SGDT", "RMSpropT") else {}
    optimizer = getattr(tr_det.core, name)([group], lr=0.05, total_steps=20, **options)
    if start is not None:
        weight.data.copy_(start[0].data)
        optimizer.load_state_dict(copy.deepcopy(start[1].state_dict()))
    for step in steps:
        weight.grad = laid_out(random(step)) if layout == "slice" else random(step)
        optimizer.step()
    return weight, optimizer


@every_optimizer
def test_the_layout_of_memory_changes_no_number(name) -> None:
    expected = conv_run(name, range(6))[0]
    runs = [conv_run(name, range(6), layout) for layout in ("last", "slice")]
    runs.append(conv_run(name, range(3, 6), start=conv_run(name, range(3), "last")))
    for weight, _ in runs:
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
