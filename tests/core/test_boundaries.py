"""The imports that are allowed: between rooms, between modules and of other packages."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "core": (),
    "digits": ("core",),
    "runtime": ("core",),
    "export": ("core", "runtime"),
    "detection": ("core", "digits", "runtime", "export"),
    "classification": ("core", "digits", "runtime", "export"),
    "study": ("core", "digits", "runtime", "export", "detection", "classification"),
}
"""Room of tr_det -> the other rooms that it may import."""
CORE_NEVER_LOADS = {
    *("detectron2", "torchvision", "matplotlib", "PIL", "sklearn", "scipy", "yacs", "yaml"),
    "tensorboard",
    "triton",  # only once there is a CUDA tensor to quantize
}


def _is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _imports(path: Path) -> list[str]:
    """Return every name that a file imports, at its top or further down."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*here, *filter(None, [node.module])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


@pytest.fixture(scope="module")
def imports() -> dict[Path, list[str]]:
    """Return what every file of the package imports."""
    return {path: _imports(path) for path in sorted((ROOT / "tr_det").rglob("*.py"))}


def test_importing_the_core_loads_no_integration() -> None:
    code = "import sys, tr_det.core; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert {"torch", "tr_det"} <= loaded
    assert not loaded & CORE_NEVER_LOADS


def test_rooms_import_only_rooms_below_them(imports) -> None:
    for path, names in imports.items():
        room, *inside = path.relative_to(ROOT / "tr_det").parts
        if not inside:
            continue
        allowed = [f"tr_det.{name}" for name in ("__version__", room, *ROOMS[room])]
        own = [name for name in names if _is_within(name, "tr_det")]
        assert [name for name in own if not _is_within(name, *allowed)] == [], path
        if room != "detection":
            assert [name for name in names if _is_within(name, "detectron2")] == [], path


def test_the_core_imports_only_torch_and_fvcore_common(imports) -> None:
    for path in (ROOT / "tr_det/core").rglob("*.py"):
        triton = ["triton"] if path.stem.endswith("_triton") else []
        foreign = [n for n in imports[path] if n.split(".")[0] not in sys.stdlib_module_names]
        allowed = "torch", "fvcore.common", "tr_det.core", *triton
        assert [name for name in foreign if not _is_within(name, *allowed)] == [], path


def test_no_circle_between_modules(imports) -> None:
    """A package's ``__init__.py`` is left out: it hands names on."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): names
        for path, names in imports.items()
        if path.name != "__init__.py"
    }
    graph = {
        module: {n for name in names for n in (name, name.rpartition(".")[0]) if n in modules}
        for module, names in modules.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them
