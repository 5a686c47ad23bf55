"""A run that is killed, wherever that is, and resumed leaves what an uninterrupted one leaves."""

import json
import os
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import JSONWriter

from tests.detection.engine.test_resume import assert_same_checkpoint
from tr_det.detection import QuantTrainer
from tr_det.detection.engine import results
from tr_det.detection.engine.records import own_writers

CLOCK = {"time", "data_time", "rank_data_time"}


def run(cfg):
    seed_all_rng(cfg.SEED)
    trainer = QuantTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


def killed(cfg, where, name, call, argument):
    """Run in a process that ends, as if killed, in the n-th call with such a last argument."""
    process = os.fork()
    if process == 0:
        function, calls = getattr(where, name), []

        def counted(*args, **kwargs):
            calls.append(argument in repr(args[-1]))
            if sum(calls) == call:
                if name == "save":
                    args[1].write(b"PK")
                os._exit(9)
            return function(*args, **kwargs)

        setattr(where, name, counted)
        run(cfg)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


def rows(folder):
    """Return the lines of metrics.json without what depends on the clock."""
    lines = (Path(folder) / "metrics.json").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{key: row[key] for key in row if key not in CLOCK} for row in found]


def written(folder):
    """Return the names of what a run writes, without TensorBoard's."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("events")}


@pytest.fixture(scope="module")
def make(tiny, scenes, tmp_path_factory):
    """Return ``make(name)``: a config of four iterations with two evaluations."""
    folder = tmp_path_factory.mktemp("runs")

    def config(name):
        cfg = tiny.tiny_config(folder / name, "TEST.EVAL_PERIOD", 2, "SOLVER.TR.LOG_PERIOD", 3)
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
        return cfg

    return config


@pytest.fixture(scope="module")
def whole(make):
    """Return the folder of an uninterrupted run."""
    run(make("whole"))
    return Path(make("whole").OUTPUT_DIR)


@pytest.mark.parametrize(
    ("where", "name", "call", "argument"),
    [
        (QuantTrainer, "test", 1, ""),  # after the first checkpoint, before its evaluation
        (QuantTrainer, "run_step", 4, ""),  # after the evaluation
        (
            torch,
            "save",
            1,
            "model_final",
        ),  # in the final checkpoint; that of the same iteration is whole
        (results, "write_results", 1, ""),  # after the last evaluation
    ],
)
def test_a_killed_run_ends_like_the_one_that_was_not(make, whole, where, name, call, argument):
    cfg = make(f"{name}{call}")
    killed(cfg, where, name, call, argument)
    run(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    assert_same_checkpoint(folder / "model_final.pth", whole / "model_final.pth")
    assert rows(folder) == rows(whole)
    assert written(folder) == written(whole)


def test_the_learning_rate_of_what_is_not_quantized_is_recorded(make, whole):
    cfg = make("whole")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler, rates = QuantTrainer.build_lr_scheduler(cfg, optimizer), []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    recorded = {row["iteration"]: row["lr"] for row in rows(whole) if "lr" in row}
    assert recorded == {place: pytest.approx(rates[place]) for place in recorded} != {}


def test_a_users_own_writer_of_json_stays(tmp_path):
    class Elsewhere(JSONWriter):
        pass

    theirs = Elsewhere(str(tmp_path / "theirs.json"))
    assert own_writers([JSONWriter(str(tmp_path / "metrics.json")), theirs]) == [theirs]
    theirs.close()
