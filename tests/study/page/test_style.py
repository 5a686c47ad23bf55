"""Colours of the page that people can tell from its paper, in both themes."""

import re

import pytest

from tr_det.study.page.charts import COLOURS
from tr_det.study.page.render import TEMPLATES

TEXT, SHAPES = 4.5, 3.0
"""Least contrast of text and of what is drawn: levels AA of WCAG 2.1, 1.4.3 and 1.4.11."""


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def themes():
    css = (TEMPLATES / "page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_texts_and_lines_can_be_seen_on_the_paper(theme):
    for paper in (theme["paper"], theme["raised"]):
        assert min(contrast(theme[name], paper) for name in ("ink", "soft", "link")) >= TEXT
    drawn = [theme[f"c{place}"] for place in range(COLOURS)]
    assert min(contrast(colour, theme["paper"]) for colour in drawn) >= SHAPES
    assert len(set(drawn)) == COLOURS
