import doctest

import pytest
import torch

from tr_det.study import figures
from tr_det.study.experiment import Laboratory, Run

QUICK = {"tr_factor": 5e-3, "tr_update": "pi", "tr_momentum": None}


@pytest.fixture(scope="module")
def outcomes():
    laboratory = Laboratory(pretraining_steps=30, width=4)
    unwatched = laboratory.run(Run(steps=30, tr=QUICK))
    runs = {
        name: laboratory.run(Run(optimizer=name, steps=30, tr=QUICK, watch=True))
        for name in ("SGD", "SGDT")
    }
    return {**runs, "unwatched": unwatched}


def test_looking_changes_nothing(outcomes):
    assert outcomes["unwatched"].trace is None
    assert outcomes["SGDT"].accuracy == outcomes["unwatched"].accuracy
    torch.testing.assert_close(
        outcomes["SGDT"].running, outcomes["unwatched"].running, rtol=0, atol=0
    )


def test_a_trace_has_what_the_figures_show(outcomes):
    trace = outcomes["SGDT"].trace
    assert trace.step_size.shape == trace.distance.shape == (29, 6)
    assert trace.step_size.max() > 0
    assert trace.rate[0] > trace.rate[-1] >= 0
    assert list(trace.latents) == [1, 10, 20, 30]
    assert trace.transition_points.tolist() == [-1.5, -0.5, 0.5]
    assert trace.accuracy[30] == outcomes["SGDT"].accuracy


@pytest.mark.parametrize("name", ["draw_step_sizes", "draw_step_decay", "draw_tr_scheduling"])
def test_pictures_are_drawn(outcomes, tmp_path, name):
    draw, path = getattr(figures, name), tmp_path / "picture.png"
    both = {key: outcomes[key].course() for key in ("SGD", "SGDT")}
    draw(path, both["SGDT"] if name == "draw_tr_scheduling" else both, "title")
    from PIL import Image

    with Image.open(path) as image:
        assert image.width >= 1000
        assert len(set(image.convert("L").resize((50, 30)).get_flattened_data())) > 10


def test_a_run_that_was_not_watched_is_refused(outcomes):
    with pytest.raises(ValueError, match="watch=True"):
        outcomes["unwatched"].course()


def test_examples_in_docstrings_give_what_they_show():
    result = doctest.testmod(figures, extraglobs={"torch": torch})
    assert result.attempted
    assert result.failed == 0
