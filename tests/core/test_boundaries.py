"""What the core may import, and that everything public says what it is."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
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


ROOMS = {
    "core": (),
    "digits": ("core", "runtime"),
    "runtime": ("core",),
    "detection": ("core", "digits", "runtime"),
    "classification": ("core", "digits", "runtime"),
    "study": ("core", "digits", "runtime", "detection", "classification"),
}
"""Room of tr_det -> the other rooms that it may import."""


def test_every_room_has_its_place() -> None:
    assert {path.parent.name for path in (ROOT / "tr_det").glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_go_one_way(room: str) -> None:
    allowed = tuple(f"tr_det.{name}" for name in (room, *ROOMS[room]))
    for path in (ROOT / "tr_det" / room).rglob("*.py"):
        ours = [name for name in _imports(path) if _is_within(name, ("tr_det",))]
        assert [name for name in ours if not _is_within(name, allowed)] == [], path


@pytest.mark.xfail(reason="core/optim: device and host name scheduled")
def test_no_circle_between_modules() -> None:
    modules = {_module(path): path for path in PACKAGE}
    arrows = {name: _imported_modules(path, modules) - {name} for name, path in modules.items()}
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names them


def _imported_modules(path: Path, modules: dict[str, Path]) -> set[str]:
    """Return what a file imports of ours, but for a package's face, which hands names on."""
    found = set()
    for name in _imports(path):
        while name and name not in modules:
            name = name.rpartition(".")[0]
        if name and modules[name].name != "__init__.py":
            found.add(name)
    return found


def _module(path: Path) -> str:
    return _relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


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
