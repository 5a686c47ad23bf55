"""The reported changes of codes against a naive count, whatever happens between updates."""

import copy
import random
import sys

import pytest
import torch
from small_runs import loss, make_model

from tr_det.core import SGDT, Method, attach, tr_param_groups, without_transition
from tr_det.core.quantizers import FREE

LAYERS = ("3", "5")


class Probe(Method):
    """Stores copies of the last updates."""

    is_part_of_run = False
    updates = None

    def reads(self, step):
        return True

    def after_update(self, step, updates):
        self.updates = {
            name: update._replace(codes=update.codes.clone(), previous=update.previous.clone())
            for name, update in updates.items()
        }


TRAINED, REFITTED = {"learn_weight_scale": True}, {"weight_quantizer": "lsbq"}
# optimizer, options of the model, tr_scales, whether a method is attached
KINDS = {
    "SGDT": ("SGDT", {}, "frozen", False),
    "SGDT with a method": ("SGDT", {}, "frozen", True),
    "SGD with a method": ("SGD", {}, None, True),
    "SGD, trained scales": ("SGD", {**TRAINED, "weight_quantizer": "lsq"}, None, True),
    "SGDT, trained scales": ("SGDT", TRAINED, "by_weight", False),
    "SGDT, trained scales, both": ("SGDT", {**TRAINED, "weight_quantizer": "lsq"}, "sum", True),
    "SGDT, refitted levels, both": ("SGDT", REFITTED, "sum", True),
    "SGD, refitted levels": ("SGD", REFITTED, None, True),
    "SGDT, refitted levels": ("SGDT", REFITTED, "frozen", True),
}


class Run:
    """A small model in training, and its naive count of transitions."""

    def __init__(self, kind):
        name, options, self.scales, attached = KINDS[kind]
        self.model = make_model(**options)
        self.scheduled = name == "SGDT"
        groups = tr_param_groups(self.model, 0.1, 1e-2)
        if self.scheduled:
            settings = {"tr_gain": 0.0, "tr_nonfinite": "skip", "tr_scales": self.scales}
            self.optimizer = SGDT(groups, lr=0.1, momentum=0.5, total_steps=100, **settings)
        else:
            self.optimizer = torch.optim.SGD(without_transition(groups), lr=0.1, momentum=0.5)
        self.probe = Probe() if attached else None
        if attached:
            attach([self.probe], self.model, self.optimizer, 100)
        self.layers = {f"{key}.weight": self.model[int(key)] for key in LAYERS}
        self.count = self.by_scale = 0

    def backward(self, step, without_grad=()):
        self.optimizer.zero_grad()
        loss(self.model, step).backward()
        for name in without_grad:
            self.layers[name].weight.grad = None

    def step(self, step, without_grad=()):
        """Make an update and compare what is reported with what it did."""
        self.backward(step, without_grad)
        before = {k: layer.weight_quantizer.codes(layer.weight) for k, layer in self.layers.items()}
        copies = {k: copy.deepcopy(layer.weight_quantizer) for k, layer in self.layers.items()}
        self.optimizer.step()
        for index, (name, layer) in enumerate(self.layers.items()):
            # What the weight's move did: at the scales and levels before the update.
            quantizer, former = layer.weight_quantizer, copies[name]
            after = former.codes(layer.weight)
            free = torch.ones_like(after) > 0 if former.held is None else former.held == FREE
            changed = ((after != before[name]) & free).sum().item()
            self.count += changed
            rate = changed / max(free.sum().item(), 1)
            by_scale = ((quantizer.codes(layer.weight) != after) & free).sum().item()
            self.by_scale += by_scale
            if self.scheduled:
                followed = changed + by_scale if self.scales == "sum" else changed
                followed = 0 if name in without_grad else followed / max(free.sum().item(), 1)
                shown = self.optimizer.transition_metrics().rate[index].item()
                assert shown == pytest.approx(followed)
            if self.probe is None:
                continue
            if name in without_grad:
                assert name not in self.probe.updates
                continue
            update = self.probe.updates[name]
            assert update.rate().item() == pytest.approx(rate)
            assert update.by_weight.item() == changed
            assert torch.equal(update.previous[free], before[name][free])
            assert torch.equal(update.codes, quantizer.codes(layer.weight))
            assert (update.by_scale is None) == (not quantizer.moving_tensors())
            assert (update.by_scale or torch.tensor(0)).item() == by_scale


def edited(run, layer, noise):
    with torch.no_grad():
        layer.weight.add_(noise)


def replaced(run, layer, noise):
    layer.weight.data = layer.weight.data + noise


def edited_behind_autograd(run, layer, noise):
    layer.weight.data.add_(noise)


def loaded(run, layer, noise):
    state = copy.deepcopy(run.model.state_dict())
    run.model.load_state_dict(
        {k: v + 0.1 if v.is_floating_point() else v for k, v in state.items()}
    )
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))


def averaged(run, layer, noise):
    """Evaluate an average in the weight's place, and go on from the weight."""
    kept = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.copy_(kept + noise)
        run.model.eval()
        loss(run.model, 0)
        run.model.train()
        layer.weight.copy_(kept)


def rescaled(run, layer, noise):
    with torch.no_grad():
        for tensor in layer.weight_quantizer.own_tensors():
            tensor.mul_(1.0 + noise.flatten()[0].abs())


def held(run, layer, noise):
    codes = layer.weight_quantizer.codes(layer.weight)
    layer.weight_quantizer.hold(noise > 0.5, codes + 1)


def failed(run, layer, noise):
    """An update that fails when some weights have moved already."""
    module = sys.modules[torch.optim.SGD.__module__]
    original = module.sgd

    def fail(*args, **kwargs):
        original(*args, **kwargs)
        if any(p is layer.weight for p in args[0]):
            raise MemoryError

    run.backward(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sgd", fail)
        with pytest.raises(MemoryError):
            run.optimizer.step()


def skipped(run, layer, noise):
    """A GradScaler leaves the step out, or the optimizer itself."""
    run.backward(0)
    layer.weight.grad[0] = torch.inf
    before = layer.weight.detach().clone()
    if run.scheduled:
        run.optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    scaler.step(run.optimizer)
    scaler.update()
    assert torch.equal(layer.weight, before)


EVENTS = [edited, edited_behind_autograd, replaced, loaded, averaged]
EVENTS += [rescaled, held, failed, skipped]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", EVENTS)
def test_what_happens_between_updates_is_not_counted(kind, event):
    run = Run(kind)
    for step in range(6):
        run.step(step)
        if step % 2:
            for layer in run.layers.values():
                event(run, layer, torch.randn(layer.weight.shape) / 4)
    assert run.count > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_updates_with_random_events(kind):
    choose = random.Random(0)
    torch.manual_seed(0)
    run = Run(kind)
    for step in range(100):
        run.step(step, without_grad=[name for name in run.layers if choose.random() < 0.2])
        for layer in run.layers.values():
            if choose.random() < 0.4:
                choose.choice(EVENTS)(run, layer, torch.randn(layer.weight.shape) / 4)
    assert run.count > 80
    assert (run.by_scale > 0) == any(
        layer.weight_quantizer.moving_tensors() for layer in run.layers.values()
    )
