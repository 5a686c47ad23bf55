"""Runs that another study has made, brought into a study's folder.

Where that study's folders are on this machine they are linked to. Otherwise a run's folder gets
results.json and origin.json, which says where it comes from:

    study        path of the study.json
    environment  that it was made in
    measures     the measures of curves that the other study had, by name
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tr_det.core.errors import check
from tr_det.runtime.files import write_json
from tr_det.runtime.results import RESULTS

STUDY = "study.json"
ORIGIN = "origin.json"

Tree = dict[str, Any]


class Elsewhere:
    """Runs that are done in other studies.

    Args:
        paths: study.json of each.

    Raises:
        ValueError: one is no study.json.
        OSError: there is no such file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._runs: dict[str, tuple[Path, Tree, Tree]] = {}
        for path in paths:
            try:
                tree = json.loads(path.read_text())
                tried = [cell for search in tree["searches"] for cell in search["candidates"]]
                for cell in [*tree["cells"], *tree["runs"], *tried]:
                    if cell["state"] == "done":
                        self._runs[cell["identity"]] = (path, tree, cell)
            except (ValueError, KeyError, TypeError):
                allowed = f"a {STUDY} that tools/run_study.py has written"
                check("--from", str(path), False, allowed)

    def bring(self, identity: str, study: Path) -> bool:
        """Bring a run into a study's folder, to which nobody else may write, unless it has one.

        Returns:
            Whether it was brought now.
        """
        if identity not in self._runs:
            return False
        path, tree, cell = self._runs.pop(identity)
        for own in study.glob(f"*_{identity}"):
            if own.exists():
                return False
            own.unlink()  # a link to a study that is no longer there
        folder, source = study / cell["folder"], path.parent / cell["folder"]
        if (source / RESULTS).is_file() and not (source / ORIGIN).exists():
            folder.symlink_to(source.resolve())
            return True
        origin = cell["origin"]
        found = {
            "study": origin or str(path),
            "environment": tree["others"][origin] if origin else tree["environment"],
            "measures": cell["measures"],
        }
        folder.mkdir()
        write_json(folder / ORIGIN, found)
        write_json(folder / RESULTS, cell["results"])
        return True
