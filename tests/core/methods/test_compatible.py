"""A method is refused where a need is not met; otherwise all methods train together."""

import itertools

import pytest
import torch
from torch import nn

from tr_det.core import (
    METHODS,
    SGDT,
    ConfigError,
    QuantConfig,
    attach,
    quantize_model,
    tr_param_groups,
)
from tr_det.core.methods import build_method
from tr_det.core.methods.compatible import NEEDS

NET = {
    "weights": {"weight_bits": 32},
    "spare codes": {"weight_bits": 8, "max_bits": 8},
    "hard weights": {"weight_quantizer": "lsbq", "weight_options": {"prox": "parq"}},
    "batch norms": {"norm": nn.Identity},
    "batches": {"batches": None},
}
"""Need -> options of a run that does not meet it."""


def run(names, *, norm=nn.BatchNorm1d, batches=list, optimizer="SGDT", max_bits=4, **config):
    names = [build_method(n, max_bits=max_bits) if n == "tracker" else n for n in names]
    model = nn.Sequential(nn.Linear(4, 6), norm(6), nn.ReLU(), nn.Linear(6, 3))
    quantize_model(model, QuantConfig(**{"weight_bits": 2, **config}))
    if optimizer == "SGDT":
        made = SGDT(tr_param_groups(model, 0.1), lr=0.1, total_steps=9, tr_scales="sum")
    else:
        made = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, made, attach(names, model, made, 9, batches=batches)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_is_refused_where_it_lacks_what_it_needs(name):
    run([name])
    for need, without in NET.items():
        if need in METHODS[name].needs:
            with pytest.raises(ConfigError, match=f"left out {NEEDS[need].reason[:20]}") as error:
                run([name], optimizer="SGD", **without)
            assert (error.value.key, error.value.value) == ("methods", name)
        else:
            run([name], optimizer="SGD", **without)


def test_every_need_is_that_of_a_method():
    assert set(itertools.chain(*(cls.needs for cls in METHODS.values()))) == set(NEEDS) == set(NET)


@pytest.mark.parametrize("optimizer", ["SGD", "SGDT"])
@pytest.mark.parametrize(
    "config",
    [
        {"weight_options": {"estimator": "ewgs"}, "act_options": {"estimator": "ewgs"}},
        {"weight_quantizer": "lsq", "learn_weight_scale": True},
        {"weight_quantizer": "lsbq"},
    ],
    ids=["ewgs", "trained", "refitted"],
)
def test_all_methods_train_together_with_frozen_trained_and_refitted_scales(optimizer, config):
    torch.manual_seed(0)
    x = torch.randn(8, 4).relu()
    model, made, attached = run(
        sorted(METHODS), batches=lambda: [lambda: model(x)] * 2, optimizer=optimizer, **config
    )
    for _ in range(4):
        made.zero_grad()
        model(x).square().sum().backward()
        made.step()
    with attached.evaluating():
        assert torch.isfinite(model(x)).all()
    assert attached.step == 4
