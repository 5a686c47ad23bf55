import doctest

import pytest

from tr_det.classification.config import keys as config
from tr_det.runtime import configs, options, results


@pytest.mark.parametrize("module", [config, configs, options, results])
def test_examples_in_docstrings_give_what_they_show(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert result.failed == 0
