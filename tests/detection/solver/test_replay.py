"""A run's TALR curves, played back: the layers get them, whatever the controller would do."""

import json

import numpy as np
import pytest

from tr_det.core import quantized_layers
from tr_det.detection import QuantTrainer, build_optimizer
from tr_det.detection.solver.replay import replayed_talr
from tr_det.runtime.metrics import read_records

STEPS = 4


@pytest.fixture
def recorded(tmp_path):
    """Write the curves of two layers, at some of the iterations; return the run's folder."""
    rows = [
        {"iteration": 0, "tr_layers/a/talr": 0.1, "tr_layers/b/talr": 0.0, "total_loss": 1.0},
        {"iteration": 1, "total_loss": 1.0},
        {"iteration": 3, "tr_layers/a/talr": 0.4, "tr_layers/b/talr": 0.6},
    ]
    (tmp_path / "metrics.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def config(make_config, folder, *more):
    keys = ["SOLVER.MAX_ITER", STEPS, "SOLVER.TR.REPLAY", str(folder)]
    return make_config("SOLVER.OPTIMIZER", "SGDT", *keys, *more)


def test_between_records_a_curve_is_a_line(make_config, recorded):
    curves = replayed_talr(config(make_config, recorded))
    np.testing.assert_allclose(curves["a.weight"], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(curves["b.weight"], [0.0, 0.2, 0.4, 0.6])


def test_a_cosine_has_the_curve_s_mean_and_falls(make_config, recorded):
    curve = replayed_talr(config(make_config, recorded, "SOLVER.TR.REPLAY_AS", "cosine"))[
        "a.weight"
    ]
    by_hand = [0.25 * (1 + np.cos(np.pi * step / STEPS)) for step in range(STEPS)]
    np.testing.assert_allclose(curve, by_hand)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["SOLVER.MAX_ITER", 5], r"REPLAY=.*: is a run of 4 iterations; must be one of .*=5"),
        (["SOLVER.TR.REPLAY", "nowhere"], r"REPLAY=nowhere: nowhere.metrics\.json has no TALR"),
        ([], r"REPLAY='0 numbers for backbone\..*': must be the TALRs of 4 updates"),
    ],
)
def test_curves_of_another_run_are_refused(make_config, recorded, pairs, message):
    cfg = config(make_config, recorded, *pairs)
    with pytest.raises(ValueError, match=message):
        build_optimizer(cfg, QuantTrainer.build_model(cfg))


def test_a_run_plays_back_what_another_one_recorded(make_config, tmp_path):
    def train(*pairs):
        cfg = make_config("SOLVER.OPTIMIZER", "SGDT", "SOLVER.TR.LOG_PERIOD", 1, *pairs)
        cfg.DATASETS.TEST = ()
        trainer = QuantTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        names = [name for name, _ in quantized_layers(trainer.model)]
        rows = read_records(tmp_path / "out/metrics.json")
        return [[row[f"tr_layers/{name}/talr"] for name in names] for row in rows]

    first = train()
    (tmp_path / "out").rename(tmp_path / "first")
    # Another seed and rule, from which other TALRs would follow.
    more = ("SEED", 9, "SOLVER.TR.FACTOR", 0.1, "SOLVER.TR.REPLAY", str(tmp_path / "first"))
    np.testing.assert_allclose(train(*more), first, rtol=1e-6)
