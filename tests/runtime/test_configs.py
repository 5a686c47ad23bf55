"""YAML of plain values, and the files that a config builds on."""

import os
import time
from pathlib import Path

import pytest

from tr_det.runtime.configs import BASE, config_files, overlaid, parse

RUN = "!!python/object/apply:os.system ['touch ran']"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(path="a.yaml") -> str:
    with pytest.raises(ValueError, match="yaml: ") as error:
        list(config_files(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be a mapping"),
        ("5", "must be a mapping"),
        ("- a", "must be a mapping"),
        ("a: [1", "line 1: "),
        ("a: 1\na: 2", "line 1: the key a comes 2 times"),
        ("a: \0", "characters that YAML does not allow"),
        ("1: a", "a key that is no text"),
        ("a: !!set {b}", "a value of the type set"),
        ("a: " + 2000 * "[", "nested more than"),
        ("a: " + 40 * "[" + 40 * "]", "nested more than"),
        ("a: &a [*a]", "contains itself"),
        (f"a: {RUN}", "line 1: the tag tag:yaml.org,2002:python/object/apply:os.system is not"),
        ("a: !!bool maybe", "a value that its tag does not fit"),
        ("a: !!int ''", "a value that its tag does not fit"),
        ("a: !!timestamp x", "a value that its tag does not fit"),
        ("_BASE_: a.yaml", "builds on itself by _BASE_"),
        ("_BASE_: 3", "_BASE_=3: must be a file"),
        ("_BASE_: {a: b}", "must be a file"),
    ],
)
def test_what_cannot_be_read_is_one_line(text, reason):
    Path("a.yaml").write_text(text)
    found = refusal()
    assert found.startswith("a.yaml: ")
    assert reason in found


@pytest.mark.parametrize("form", ["[{0}, {0}]", "{{<<: [{0}, {0}]}}"], ids=["lists", "merges"])
def test_aliases_that_multiply_end_soon(form):
    lines = ["a: &a0 {b: 1}"] + [f"a{i}: &a{i} {form.format(f'*a{i - 1}')}" for i in range(1, 29)]
    start = time.monotonic()
    with pytest.raises(ValueError, match="more than 100000 values"):
        parse("\n".join(lines))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("text", ["secret: [", "secret", "- secret", b"secret: \xff", f"a: {RUN}"])
def test_a_file_that_one_builds_on_is_named_but_not_quoted_or_run(text):
    Path("a.yaml").write_text("_BASE_: [base.yaml]")
    Path("base.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = refusal()
    assert found.startswith("base.yaml: ")
    assert "secret" not in found
    assert not Path("ran").exists()


def test_values_are_those_that_a_config_means():
    text = (
        "a: 1e-3\nb: 2E5\nc: .5e+1\nd: 2024-01-01\ne: 1e\nf: 010\ng: ~\nh: &h {x: 1}\ni: {<<: *h}"
    )
    found = parse(text)
    assert found == {
        "a": 0.001, "b": 2e5, "c": 5.0, "d": "2024-01-01", "e": "1e", "f": 8, "g": None,
        "h": {"x": 1}, "i": {"x": 1},
    }  # fmt: skip


def test_files_come_before_those_that_they_build_on(folder):
    (folder / "sub").mkdir()
    for name, text in {
        "a.yaml": "{_BASE_: [one.yaml, sub/two.yaml], a: 1}",
        "one.yaml": "b: 1",
        "sub/two.yaml": "{_BASE_: ../three.yaml, c: {}}",
        "three.yaml": f"{{_BASE_: {os.path.abspath('four.yaml')}, d: 1}}",
        "four.yaml": "_BASE_: []",
    }.items():
        Path(name).write_text(text)
    found = [(path.name, tree) for path, tree in config_files("a.yaml")]
    assert found == [
        ("a.yaml", {"a": 1}),
        ("two.yaml", {"c": {}}),
        ("three.yaml", {"d": 1}),
        ("four.yaml", {}),
        ("one.yaml", {"b": 1}),
    ]
    assert all(BASE not in tree for _, tree in found)
    Path("four.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"four\.yaml: no such file"):
        list(config_files("a.yaml"))


def test_a_mapping_adds_to_a_mapping_and_all_else_replaces():
    base = {"a": {"b": [1, 2], "c": 1}, "d": {"e": 1}}
    assert overlaid({"a": {"b": [3]}, "d": 5}, base) == {"a": {"b": [3], "c": 1}, "d": 5}
    assert overlaid({"d": {}}, {"d": 1}) == {"d": {}}
    assert base == {"a": {"b": [1, 2], "c": 1}, "d": {"e": 1}}
