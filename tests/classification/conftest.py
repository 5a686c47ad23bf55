"""A folder with two configs that train in seconds, and helpers to compare checkpoints."""

import shutil
from pathlib import Path

import pytest
import torch

TINY = """
model: {name: resnet_cifar, options: {depth: 8, width: 4}}
solver: {batch_size: 32, iterations: 8, lr: 0.05}
run: {log_period: 1, checkpoint_period: 4, device: cpu}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fp.yaml").write_text(TINY)
    (tmp_path / "qat.yaml").write_text(
        "_BASE_: fp.yaml\nmodel: {pretraining: fp.yaml}\nquant: {bits: W2A2}\n"
        "solver: {optimizer: SGDT}\ntr: {factor: 0.01, update: pi, momentum: -1}\n"
    )
    return tmp_path


@pytest.fixture
def final():
    """Return ``final(folder)``, which reads the final checkpoint of a run."""
    return lambda folder: torch.load(Path(folder) / "model_final.pth", weights_only=True)


@pytest.fixture
def stop_at():
    """Return ``stop_at(config, name, target)``.

    It copies a finished run as if stopped after that checkpoint; metrics go past it.
    """

    def stop(config, name, target):
        shutil.copytree(config.run.output_dir, target)
        (Path(target) / "model_final.pth").unlink()
        (Path(target) / "last_checkpoint").write_text(name)

    return stop


@pytest.fixture(name="same")
def same_fixture():
    """Return ``same(first, second)``: whether nested states are equal to the bit."""
    return same


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second
