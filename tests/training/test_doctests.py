import doctest

import pytest
import torch

from tr_det.training import watch


@pytest.mark.parametrize("module", [watch])
def test_examples_in_docstrings_give_what_they_show(module):
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted
    assert result.failed == 0
