import doctest

import pytest
import torch
from PIL import Image

from tr_det.study import figure_runs, figures
from tr_det.study.history import read_history


@pytest.mark.parametrize("figure", figures.FIGURES)
def test_pictures_are_drawn(cells, tmp_path, figure):
    names = ["SGDT"] if figure == "tr-scheduling" else ["SGD", "SGDT"]
    histories = {name: read_history(cells[name]) for name in names}
    path = tmp_path / "picture.png"
    figures.draw(path, figure, histories, "title")
    with Image.open(path) as image:
        assert image.width >= 1000
        assert len(set(image.convert("L").resize((50, 30)).get_flattened_data())) > 10


@pytest.mark.parametrize("module", [figures, figure_runs])
def test_examples_in_docstrings_give_what_they_show(module):
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted
    assert result.failed == 0
