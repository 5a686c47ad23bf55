"""What all tests share: one thread, and a tiny detection dataset with a config for it."""

import importlib.util
from pathlib import Path

import pytest
import torch

# CPU results are bit-identical between runs only at a fixed thread count.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    """Return the module tiny.py; loaded by path because tests are not packages."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    """Run within an EventStorage, as Detectron2's models in training demand."""
    from detectron2.utils.events import EventStorage

    with EventStorage() as opened:
        yield opened
