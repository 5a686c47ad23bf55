"""The examples in the core's docstrings hold."""

import doctest
import importlib.util
import pkgutil

import torch

import tr_det.core


def test_examples_in_docstrings_give_what_they_show():
    attempted = 0
    for info in pkgutil.walk_packages(tr_det.core.__path__, "tr_det.core."):
        if info.name.endswith("_triton") and importlib.util.find_spec("triton") is None:
            continue
        result = doctest.testmod(importlib.import_module(info.name), extraglobs={"torch": torch})
        assert result.failed == 0, info.name
        attempted += result.attempted
    assert attempted > 5
