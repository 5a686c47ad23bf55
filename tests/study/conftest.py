"""Runs of a network that trains in a second, for the studies' tests to read and draw."""

import pytest

from tr_det.core.transition import AUTO
from tr_det.study import figure_runs
from tr_det.study.figure_runs import settings

TINY = """
model: {name: resnet_cifar, options: {depth: 8, width: 4}}
solver: {batch_size: 32, iterations: 8}
run: {device: cpu}
"""


@pytest.fixture(scope="session")
def output(tmp_path_factory):
    """Return a folder for studies of a tiny network, the same for all tests."""
    configs = tmp_path_factory.mktemp("configs")
    (configs / "resnet8_fp.yaml").write_text(TINY)
    (configs / "resnet8_sgd.yaml").write_text("_BASE_: resnet8_fp.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure_runs, "CONFIGS", configs)
        yield tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="session")
def cells(output):
    """Return the folders of a plain and a TR-scheduled run, by optimizer."""
    keys = {"solver.iterations": 30, "run.eval_period": 10, "run.checkpoint_period": 3}
    keys |= {"run.keep_checkpoints": 0, "tr.factor": AUTO}
    folders = {name: output / name for name in ("SGD", "SGDT")}
    for name, folder in folders.items():
        figure_runs.run_cell(folder, settings(name, more=keys), 0, output)
    return folders
