"""A quantizer or a method is one source file and one test; the docs say so."""

import ast
import re
from pathlib import Path

import pytest

from tr_det.core import METHODS, QUANTIZERS, Quantizer
from tr_det.core.transition.settings import table

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tr_det"
KINDS = {"quantizer": ("quantizers", QUANTIZERS), "method": ("methods", METHODS)}
GUESTS = [
    (folder, name, cls)
    for folder, registry in KINDS.values()
    for name, cls in registry.items()
    if name != "fixed_grid"  # the default, which configs and docs name
]
KNOWN = {("tracker", "tr_det/core/methods/freezing.py")}
"""A method that builds on another one names it."""


def parsed(path):
    return ast.walk(ast.parse(path.read_text()))


@pytest.mark.parametrize(("folder", "name", "cls"), GUESTS, ids=lambda part: str(part))
def test_a_guest_is_known_to_its_own_file_alone(folder, name, cls):
    own = PACKAGE / "core" / folder / f"{name}.py"
    assert own.is_file()
    assert (ROOT / "tests/core" / folder / f"test_{name}.py").is_file()
    for path in PACKAGE.rglob("*.py"):
        where = str(path.relative_to(ROOT))
        if path == own or (name, where) in KNOWN:
            continue
        for node in parsed(path):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").endswith(f"{folder}.{name}"), where
            if isinstance(node, ast.Name):
                assert node.id != cls.__name__, where
            if isinstance(node, ast.Constant) and name != "ewgs":  # an estimator's name as well
                assert node.value != name, where


def test_nobody_asks_which_quantizer_it_is():
    concrete = {cls.__name__ for cls in QUANTIZERS.values()} | {"AffineQuantizer"}
    for path in PACKAGE.rglob("*.py"):
        for node in parsed(path):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                assert not asked & concrete, path
    assert all(issubclass(cls, Quantizer) for cls in QUANTIZERS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_docs_list_the_files(kind):
    folder, registry = KINDS[kind]
    text = (PACKAGE / f"docs/add_a_{kind}.md").read_text()
    listed = re.findall(r"^- `(.+NAME.*)`$", text, re.MULTILINE)
    assert listed == [f"tr_det/core/{folder}/NAME.py", f"tests/core/{folder}/test_NAME.py"]
    for name in registry:
        if name != "fixed_grid":
            assert all((ROOT / pattern.replace("NAME", name)).is_file() for pattern in listed)


def test_the_docs_have_the_table_of_settings():
    assert table() in (PACKAGE / "docs/tr_settings.md").read_text()
