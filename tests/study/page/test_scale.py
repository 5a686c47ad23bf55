import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tr_det.study.page import pictures, recorded, scale
from tr_det.study.page.scale import fitted, number

NUMBERS = st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=5)


@given(NUMBERS, st.booleans(), st.booleans())
def test_axes_show_all_numbers_with_a_few_ticks_that_differ(values, log, zero):
    axis = fitted(values, 40, 390, log=log, zero=zero)
    pixels = [axis(value) for value in sorted(values)]
    assert pixels == sorted(pixels)
    assert 40 <= pixels[0] <= pixels[-1] <= 390
    ticks = axis.ticks(5)
    assert 1 <= len(ticks) <= 13
    places, labels = zip(*ticks, strict=True)
    assert list(places) == sorted(set(places))
    assert 40 - 1e-6 <= places[0] <= places[-1] <= 390 + 1e-6
    assert len(set(labels)) == len(labels)


@given(st.floats(1e-12, 1e12), st.booleans())
def test_numbers_are_written_to_three_digits(value, negative):
    value = -value if negative else value
    mantissa, _, power = number(value).replace(",", "").partition("×10")
    digits = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    assert float(f"{mantissa}e{digits or 0}") == pytest.approx(value, rel=5.001e-3)


@pytest.mark.parametrize("module", [pictures, recorded, scale])
def test_examples_in_docstrings_give_what_they_show(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert result.failed == 0
