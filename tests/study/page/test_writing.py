"""What pages say, and what they never do."""

import base64
import hashlib
import json
import logging
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest

from tests.study.page.conftest import ATTACK, LAYERS
from tr_det.study.page.writing import write_page

EMPTY = {"meta", "link", "img", "input", "br", "image", "use", "line", "circle", "rect", "path"}


class Reader(HTMLParser):
    """Collects tags, attributes, texts and the content of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.inside = [], [], [], []
        self.raw = {"script": [], "style": []}
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in EMPTY:
            return
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in EMPTY:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]].append(data)
        else:
            self.text.append(data)


@pytest.fixture(params=["classifier", "detector", "study"])
def page(request):
    """Return the HTML of each kind of page; all have hostile texts in them."""
    return write_page(request.getfixturevalue(request.param)).read_text()


def test_hostile_texts_are_only_shown_and_nothing_is_loaded(page):
    found = Reader(page)
    assert found.open == []
    assert found.tags.count("script") == found.tags.count("style") == 1
    assert ATTACK in "".join(found.text)
    assert "img" not in found.tags
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "action", "srcset", "data", "xlink:href"):
            assert re.match(r"#|data:(image/jpeg;base64,|,$)", value), (tag, name, value)
    assert "url(" not in found.raw["style"][0]
    assert "@import" not in found.raw["style"][0]
    (policy,) = [
        value
        for tag, name, value in found.attributes
        if name == "content" and "default-src" in value
    ]
    assert "default-src 'none'" in policy
    for kind in ("script", "style"):
        digest = hashlib.sha256("".join(found.raw[kind]).encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert not [
        name for _, name, _ in found.attributes if name == "style"
    ]  # the policy forbids them


def test_identifiers_are_unique_and_sections_are_linked(page):
    found = Reader(page)
    names = [value for _, name, value in found.attributes if name == "id"]
    assert len(names) == len(set(names))
    links = [
        value[1:]
        for tag, name, value in found.attributes
        if name == "href" and value.startswith("#")
    ]
    assert set(links) <= set(names)
    assert found.tags.count("h1") == 1


def test_a_run_that_is_not_finished_or_has_damaged_records_has_a_page(classifier, caplog):
    for name in ("results.json", "model_0000010.pth", "model_final.pth"):
        (classifier / name).unlink()
    path = classifier / "metrics.json"
    path.write_text(path.read_text() + '{"iteration": 99, "loss": <script>\n[1]\n{"iteration": 40')
    with caplog.at_level(logging.WARNING):
        text = write_page(classifier).read_text()
    assert "3 damaged lines are left out" in caplog.text
    assert "94.88" in text  # of the last evaluation that is recorded
    assert "No checkpoint" in text


def test_numbers_of_a_run_and_its_layers_are_there(classifier):
    text = write_page(classifier).read_text()
    rows = re.findall(r"<tr.*?</tr>", text, flags=re.DOTALL)
    plain = [re.sub(r"<[^>]*>|\s+", " ", row) for row in rows]
    assert any("94.50" in row and "99.00" in row and "0.02" in row for row in plain)
    for layer in LAYERS:
        assert any(layer in row and "0.25" in row for row in plain)
    assert len(re.findall(r'class="area"', text)) >= 2  # a histogram of each quantized layer


def test_detections_are_beside_annotations_and_baseline(detector, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(detector, other)
    (other / "inference/coco_instances_results.json").write_text("[]")
    text = write_page(detector, baseline=other).read_text()
    titles = re.findall(
        r"<figcaption>([^<]*?)\s*<span class=\"note\">([^<]*)</span></figcaption>", text
    )
    # Of three objects that overlap with detections of 0.9, 0.6 and 0.3, the last is not shown.
    assert ("annotations", "3 objects") in titles
    assert ("W4A4 SGDT", "2 of 3 found, 0 false") in titles
    assert ("W4A4 SGDT, other", "0 of 3 found, 0 false") in titles
    assert text.count("data:image/jpeg") == 3


def test_a_study_says_what_won_with_its_interval_and_what_is_missing(study):
    text = write_page(study).read_text()
    record = json.loads((study / "study.json").read_text())
    found = next(r for r in record["rows"] if r["labels"] == {"bits": "W2A2", "method": "SGDT"})
    low, high = found["difference"]["low"], found["difference"]["high"]
    lead = "W2A2: SGDT is best with 80.00 ± 0.36 % accuracy (3 seeds), 5.00 above SGD"
    assert f"{lead} [{low:+.2f}, {high:+.2f}]." in text
    assert text.count('class="best"') == 3  # of two groups, and of a search
    assert "3 failed" in text


def test_jinja_is_asked_for_where_it_is_missing(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r"needs jinja2.*pip install"):
        write_page(classifier)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", None, "classifier: has no config.yaml; must be the folder of a run"),
        ("config.yaml", "a: [1", r"config\.yaml: line 1"),
        ("config.yaml", "a: 1", r"config\.yaml: not the config of a run"),
        ("study.json", "[]", r"study\.json: not written by this version of tools/run_study\.py"),
    ],
)
def test_folders_of_something_else_are_refused(classifier, name, text, message):
    (classifier / name).unlink(missing_ok=True)
    if text is not None:
        (classifier / name).write_text(text)
    with pytest.raises((ValueError, OSError), match=message):
        write_page(classifier)
