from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from tr_det.core import TransitionMetrics
from tr_det.detection.events import TransitionLogger

NAMES = ("a.conv1.weight", "a.conv2.weight")


def metrics_at(step):
    """Return metrics whose means are 10, 20, 30 and 40 times the step's number."""
    spread = torch.tensor([-1.0, 1.0])
    return TransitionMetrics(NAMES, *(10.0 * factor * step + spread for factor in (1, 2, 3, 4)))


def run(logger, steps):
    with EventStorage() as storage:
        for step in range(steps):
            storage.iter = step
            logger(SimpleNamespace(transition_metrics=lambda step=step: metrics_at(step)))
            assert storage.iter == step
    return storage


def test_means_are_kept_for_every_step_under_its_iteration():
    storage = run(TransitionLogger(3), 6)
    for key, factor in (("target", 1), ("running", 2), ("talr", 3), ("rate", 4)):
        values = storage.history(f"tr/{key}").values()
        assert values == [(10.0 * factor * step, step) for step in range(6)]


def test_layers_are_recorded_once_per_period():
    storage = run(TransitionLogger(3), 7)
    assert storage.history("tr_layers/a.conv1/running").values() == [(39.0, 2), (99.0, 5)]
    assert storage.history("tr_layers/a.conv2/talr").values() == [(61.0, 2), (151.0, 5)]
    assert storage.history("tr_layers/a.conv2/target").values() == [(21.0, 2), (51.0, 5)]


def test_no_value_is_read_between():
    target = torch.ones(2)
    running = torch.ones(2, device="meta")  # a tensor without values: reading one is an error
    metrics = TransitionMetrics(NAMES, target, running, running, running)
    logger = TransitionLogger(3)
    with EventStorage() as storage:
        for storage.iter in (0, 1):
            logger(SimpleNamespace(transition_metrics=lambda: metrics))
        storage.iter = 2
        with pytest.raises(NotImplementedError):
            logger(SimpleNamespace(transition_metrics=lambda: metrics))


def test_outside_a_training_loop_nothing_happens():
    TransitionLogger(1)(SimpleNamespace(transition_metrics=None))


def test_a_model_without_tr_layers_records_nothing():
    with EventStorage() as storage:
        empty = TransitionMetrics((), *[torch.zeros(0)] * 4)
        TransitionLogger(1)(SimpleNamespace(transition_metrics=lambda: empty))
    assert not storage.latest()
