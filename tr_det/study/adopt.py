"""Runs that another study has made, brought into a study's folder.

Where that study's folders are on this machine they are linked to. Otherwise a run's folder gets
results.json and origin.json, whose ``study`` is the path of the study.json that it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tr_det.core.errors import ConfigError
from tr_det.runtime.files import write_json
from tr_det.runtime.results import RESULTS, Results
from tr_det.study.record import STUDY, RunEntry, candidates, read_record

ORIGIN = "origin.json"


class Elsewhere:
    """Runs that are done in other studies.

    Args:
        paths: study.json of each.

    Raises:
        ValueError: one is no study.json.
        OSError: there is no such file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._runs: dict[str, tuple[Path, RunEntry]] = {}
        for path in paths:
            try:
                record = read_record(path)
            except ValueError:
                allowed = f"a {STUDY} that this version of tools/run_study.py has written"
                raise ConfigError("--from", str(path), allowed) from None
            for run in [*record["cells"], *record["runs"], *candidates(record)]:
                if run["state"] == "done":
                    self._runs[run["identity"]] = (path, run)

    def look(self, identity: str) -> tuple[Results, bool] | None:
        """Return the results of a run, and whether its files are on this machine.

        None where it is not done elsewhere.
        """
        if identity not in self._runs:
            return None
        path, run = self._runs[identity]
        return run["results"], _has_files(path.parent / run["folder"])

    def bring(self, identity: str, study: Path) -> bool:
        """Bring a run into a study's folder, to which nobody else may write, unless it has one.

        Returns:
            Whether it was brought now.
        """
        if identity not in self._runs:
            return False
        path, run = self._runs.pop(identity)
        for own in study.glob(f"*_{identity}"):
            if own.exists():
                return False
            own.unlink()  # a link to a study that is no longer there
        folder, source = study / run["folder"], path.parent / run["folder"]
        if _has_files(source):
            folder.symlink_to(source.resolve())
            return True
        folder.mkdir()
        write_json(folder / ORIGIN, {"study": run["origin"] or str(path)})
        write_json(folder / RESULTS, run["results"])
        return True


def _has_files(folder: Path) -> bool:
    return (folder / RESULTS).is_file() and not (folder / ORIGIN).exists()
