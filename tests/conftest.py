"""What all tests share: one thread, and a tiny detection dataset with a config for it."""

import logging
import multiprocessing
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import start_processes

# CPU results are bit-identical between runs only at a fixed thread count.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Put files with slow tests first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def no_log_is_of_an_earlier_test():
    """Drop handlers of logs whose streams ended with an earlier test: they print tracebacks."""
    loggers = logging.Logger.manager.loggerDict.values()
    for logger in [x for x in loggers if isinstance(x, logging.Logger)]:
        for handler in list(logger.handlers):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


@pytest.fixture(scope="session")
def run_in_new():
    """Return ``run(count, function, *args)``: ``function(rank, *args)`` in new processes at once.

    They are forked from one that has imported torch and done nothing else: a spawned process takes
    seconds of processor time for that.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tr_det.core", "torch.distributed", "torch._dynamo"])
    return lambda count, function, *args: start_processes(
        function, args, count, start_method="forkserver"
    )


@pytest.fixture(scope="session")
def tiny():
    """Return the module tiny.py; imported late, because the core's tests need no detectron2."""
    from tests import tiny

    return tiny


@pytest.fixture(scope="session")
def scenes(tiny, tmp_path_factory):
    """Build and register the tiny dataset; return its folder."""
    folder = tmp_path_factory.mktemp("datasets")
    tiny.register_tiny_scenes(folder)
    return folder


@pytest.fixture
def make_config(tiny, scenes, tmp_path):
    """Return ``make(*overrides) -> cfg`` with its output in the test's folder."""
    return lambda *overrides: tiny.tiny_config(tmp_path / "out", *overrides)


@pytest.fixture
def storage():
    """Run within an EventStorage, which Detectron2's models need in training."""
    from detectron2.utils.events import EventStorage

    with EventStorage() as opened:
        yield opened


@pytest.fixture
def check_results():
    """Return ``check(results)``, which checks the form of results.json that all runs write."""

    def check(results):
        parts = {"config", "seed", "versions", "metrics", "updates", "tr", "cost", "seconds"}
        assert results.keys() == parts | {"machine", "paths"}
        machine = results["machine"]
        assert machine.keys() == {"cpu", "gpu", "processes", "threads"}
        assert machine["cpu"]
        assert machine["processes"] > 0 < machine["threads"]
        assert {"tr_det", "torch", "python"} <= results["versions"].keys()
        assert isinstance(results["config"], dict)
        assert isinstance(results["seed"], int)
        assert results["updates"] > 0 < results["seconds"]
        assert results["metrics"]
        tr = {"first_target", "last_target", "running_tr", "factor", "tracking_error", "mean_rate"}
        assert results["tr"].keys() in (tr, {"mean_rate"}, set())
        cost = results["cost"]
        assert 0 < cost["storage_mb"] <= cost["storage_mb_at_32_bits"]
        assert cost.keys() <= {"storage_mb", "storage_mb_at_32_bits", "bops"}
        assert results["paths"].keys() == {"folder", "checkpoint", "start"}
        assert Path(results["paths"]["checkpoint"]).is_file()

    return check
