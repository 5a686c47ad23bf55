"""A quantizer or a method is one source file and one test file, named like it."""

import ast
from pathlib import Path

from tr_det.core import METHODS, QUANTIZERS

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"fixed_grid", "ewgs"}  # the default of configs; an estimator has that name as well
EXCEPTIONS = {("tracker", "tr_det/core/methods/freezing.py")}  # freezing builds on the tracker


def test_a_quantizer_or_method_is_known_to_its_own_file_alone():
    own, names = {}, {}
    for folder, registry in (("quantizers", QUANTIZERS), ("methods", METHODS)):
        for name, cls in registry.items():
            own[name] = ROOT / f"tr_det/core/{folder}/{name}.py"
            assert own[name].is_file()
            if name != "fixed_grid":  # its tests have files of their own
                assert (ROOT / f"tests/core/{folder}/test_{name}.py").is_file()
                names["id", cls.__name__] = name
                names["module", f"tr_det.core.{folder}.{name}"] = name
            if name not in SHARED:
                names["value", name] = name
    for path in (ROOT / "tr_det").rglob("*.py"):
        where = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            for key in ("id", "module", "value"):
                word = getattr(node, key, None)
                name = names.get((key, word)) if isinstance(word, str) else None
                assert name is None or path == own[name] or (name, where) in EXCEPTIONS, where
