"""What the core may import, and that everything public says what it is."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "tr_det").rglob("*.py"))
CORE = sorted((ROOT / "tr_det/core").rglob("*.py"))
CORE_PACKAGES = [path for path in CORE if path.name == "__init__.py"]
CORE_MAY_IMPORT = ("torch", "fvcore.common", "tr_det.core")
CORE_NEVER_LOADS = {
    *("detectron2", "torchvision", "matplotlib", "PIL", "sklearn", "scipy", "yacs", "yaml"),
    "tensorboard",
    "triton",  # only once there is a CUDA tensor to quantize
}


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _imports(path: Path) -> list[str]:
    """Return every imported name of a file, wherever in it the import stands."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = _relative(path).split("/")[: -node.level] if node.level else []
            module = ".".join([*here, *filter(None, [node.module])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def test_importing_the_core_loads_no_integration() -> None:
    code = "import sys, tr_det.core; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert {"torch", "tr_det"} <= loaded
    assert not loaded & CORE_NEVER_LOADS


@pytest.mark.parametrize("path", PACKAGE, ids=_relative)
def test_only_detection_imports_detectron2(path: Path) -> None:
    if not path.is_relative_to(ROOT / "tr_det/detection"):
        assert [name for name in _imports(path) if _is_within(name, ("detectron2",))] == []


@pytest.mark.parametrize(
    ("package", "barred"),
    [
        ("training", ("detection", "classification", "demo")),
        ("classification", ("detection",)),
        ("detection", ("classification",)),
    ],
)
def test_arrows_go_one_way(package: str, barred: tuple[str, ...]) -> None:
    folders = tuple(f"tr_det.{name}" for name in barred)
    for path in (ROOT / "tr_det" / package).rglob("*.py"):
        assert [name for name in _imports(path) if _is_within(name, folders)] == [], path


@pytest.mark.parametrize("path", CORE, ids=_relative)
def test_core_imports_only_torch_and_fvcore_common(path: Path) -> None:
    allowed = (*CORE_MAY_IMPORT, "triton") if path.stem.endswith("_triton") else CORE_MAY_IMPORT
    foreign = [
        name
        for name in _imports(path)
        if name.split(".")[0] not in sys.stdlib_module_names and not _is_within(name, allowed)
    ]
    assert foreign == []


@pytest.mark.parametrize("path", CORE, ids=_relative)
def test_core_module_and_its_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    public = [node for node in definitions if not node.name.startswith("_")]
    assert ast.get_docstring(tree)
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", CORE_PACKAGES, ids=_relative)
def test_all_lists_names_that_exist_once(path: Path) -> None:
    module = importlib.import_module(_relative(path.parent).replace("/", "."))
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
