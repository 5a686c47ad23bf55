"""What every registered method must do, alone and with all others, under SGD and SGDT."""

import copy

import conformance_runs as runs
import pytest
import torch
from small_runs import assert_equal, leaves, loss, snapshot, train

from tr_det.core.weight_stats import held_share

CASES = runs.cases()
both = pytest.mark.parametrize(("case", "optimizer"), CASES)


def test_a_run_resumed_in_another_process_ends_bit_identical(tmp_path):
    states = {f"{c} {o}": runs.halfway(c, o) for c, o in CASES}
    torch.save(states, tmp_path / "in.pth")
    torch.multiprocessing.spawn(runs.resume, (str(tmp_path),))
    resumed = torch.load(tmp_path / "out.pth", weights_only=True)
    for case, optimizer in CASES:
        model, made, _ = runs.start(case, optimizer)
        train(model, made, range(runs.STEPS))
        assert_equal(leaves(resumed[f"{case} {optimizer}"]), snapshot(model, made))


@both
def test_a_resumed_run_leaves_the_loaded_state_alone(case, optimizer):
    """Only the methods' part: torch itself updates the loaded momentum buffers in place."""
    state = copy.deepcopy(runs.halfway(case, optimizer))
    before = leaves(copy.deepcopy(state[1]["tr_det"]))
    runs.finish(case, optimizer, state)
    assert_equal(leaves(state[1]["tr_det"]), before)


def test_two_processes_have_the_same_state(tmp_path):
    torch.multiprocessing.spawn(runs.in_two_processes, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    assert_equal(leaves(first), leaves(second))
    # Statistics of calibration: 0..4 in the one, 100 in the other.
    total, most, sample = first["pool"]
    assert (total.item(), most.item()) == (100.0, 100.0)
    assert sample.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 100.0]


@both
def test_a_skipped_step_leaves_no_trace(case, optimizer):
    states = []
    for skips in (True, False):
        model, made, attached = runs.start(case, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=1000)
        for step in range(6):
            if skips and step == 3:
                made.zero_grad()
                scaler.scale(loss(model, 99)).backward()
                next(p for p in model.parameters() if p.grad is not None).grad.fill_(torch.inf)
                scaler.step(made)
                scaler.update(2.0)
            made.zero_grad()
            scaler.scale(loss(model, step)).backward()
            scaler.step(made)
            scaler.update(2.0)
        assert attached.step == 6
        states.append(snapshot(model, made))
    assert_equal(*states)


@both
def test_evaluations_leave_no_trace(case, optimizer):
    states = []
    for evaluates in (True, False):
        model, made, attached = runs.start(case, optimizer)
        for step in range(runs.STEPS):
            train(model, made, [step])
            if evaluates:
                with attached.evaluating():
                    loss(model.eval(), 50)
                model.train()
        states.append(snapshot(model, made))
    assert_equal(*states)


@both
def test_a_copy_of_the_model_computes_the_same_and_is_left_alone(case, optimizer):
    model, made, _ = runs.start(case, optimizer)
    train(model, made, range(8))
    twin = copy.deepcopy(model)
    assert torch.equal(loss(twin, 50), loss(model, 50))
    before = copy.deepcopy(twin.state_dict())
    train(model, made, range(8, 12))
    assert_equal(leaves(dict(twin.state_dict())), leaves(dict(before)))


@pytest.mark.parametrize("optimizer", ["SGD", "SGDT"])
def test_all_methods_train_together_and_some_weights_are_held(optimizer):
    model, made, attached = runs.start(runs.TOGETHER, optimizer)
    before = sum(loss(model, 100 + i).item() for i in range(8))
    train(model, made, range(runs.STEPS))
    with attached.evaluating():
        assert sum(loss(model, 100 + i).item() for i in range(8)) < before
    scalars = {k: v.item() for m in attached.methods for k, v in m.scalars().items()}
    assert scalars["tr/oscillating"] > 0
    assert 0 < held_share(attached.codes.weights()) < 1
