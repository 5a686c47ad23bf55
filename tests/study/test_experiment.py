import pytest
import torch

from tr_det.study.experiment import Laboratory, Run


@pytest.fixture(scope="module")
def laboratory():
    return Laboratory(pretraining_steps=60, width=4)


def test_one_seed_gives_one_result(laboratory):
    run = Run(steps=20, tr={"tr_factor": 5e-3})
    first, second = laboratory.run(run), laboratory.run(run)
    assert first.accuracy == second.accuracy
    torch.testing.assert_close(first.running, second.running, rtol=0, atol=0)


def test_histories_have_a_row_per_update_and_a_column_per_layer(laboratory):
    outcome = laboratory.run(Run(steps=20, tr={"tr_factor": 5e-3}))
    assert outcome.running.shape == outcome.target.shape == outcome.talr.shape == (20, 6)
    assert outcome.target[0, 0].item() == pytest.approx(5e-3 * 2**0.5)
    by_hand = ((outcome.running - outcome.target).abs() / outcome.target[0, 0])[2:].mean()
    assert outcome.tracking_error() == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_plain_optimizer_has_no_history(laboratory):
    outcome = laboratory.run(Run(optimizer="AdamW", steps=5))
    assert len(outcome.running) == 0
    assert 0 <= outcome.accuracy <= 100
