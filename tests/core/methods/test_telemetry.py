"""The logged curves: one update worked out by hand; logging changes nothing."""

import pytest
import torch
from small_runs import assert_equal, make_model, make_optimizer, pair, snapshot, train

from tr_det.core import CodeBook, attach
from tr_det.core.methods.telemetry import Telemetry


@pytest.mark.parametrize("name", ["SGD", "SGDT", "AdamT"])
def test_the_log_has_what_the_update_did(name):
    model = make_model()
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.3)
        if name == "SGD"
        else make_optimizer(model, name, lr=0.3)
    )
    written = {}
    telemetry = Telemetry(lambda step: step % 3 == 2, lambda step, s: written.update({step: s}))
    attach([telemetry], model, optimizer, 9)
    for step in range(9):
        layers = {n: model[int(n)] for n in ("3", "5")}
        before = {n: layer.weight_quantizer.codes(layer.weight) for n, layer in layers.items()}
        train(model, optimizer, [step])
        if step % 3 != 2:
            continue
        rates = []
        for n, layer in layers.items():
            quantizer, old = layer.weight_quantizer, before[n]
            new = quantizer.codes(layer.weight)
            rates.append((new != old).double().mean().item())
            gamma = 2 ** (quantizer.bits - 1)
            moved = (new.double() - old.double()).abs().mean().item() / gamma
            units = (layer.weight.double() / quantizer.scale.double() * gamma).clamp(
                -gamma, gamma - 1
            )
            points = torch.arange(-gamma, gamma - 1).double() + 0.5
            distance = (units.flatten()[:, None] - points).abs().amin(1).mean().item()
            for key, value in (("rate", rates[-1]), ("step_size", moved), ("distance", distance)):
                assert written[step][f"tr_layers/{n}/{key}"] == pytest.approx(value, abs=1e-6), key
        assert written[step]["tr/rate"] == pytest.approx(sum(rates) / 2, abs=1e-7)
        assert ("tr/talr" in written[step]) == (name != "SGD")
        factors = [g["tr_factor"] for g in optimizer.param_groups if "tr_factor" in g]
        assert written[step].get("tr/factor") == (factors[0] if factors else None)
    assert sorted(written) == [2, 5, 8]
    assert sum(scalars["tr/rate"] for scalars in written.values()) > 0


def test_updates_that_are_not_logged_cost_a_plain_optimizer_nothing(monkeypatch):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []
    attach([Telemetry(lambda step: step == 2, lambda *_: None)], model, optimizer, 9)
    begin = CodeBook.begin
    monkeypatch.setattr(CodeBook, "begin", lambda *a, **k: (calls.append(1), begin(*a, **k))[1])
    train(model, optimizer, range(6))
    assert len(calls) == 1


def test_logging_changes_no_number():
    runs = []
    for methods in ([], [Telemetry(lambda step: True, lambda *_: None), "tracker"]):
        model, optimizer = pair()
        attach(methods, model, optimizer, 9)
        train(model, optimizer, range(9))
        state = snapshot(model, optimizer)
        runs.append({key: value for key, value in state.items() if "/tr_det/" not in key})
    assert_equal(*runs)
