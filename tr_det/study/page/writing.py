"""From a folder to its page."""

from __future__ import annotations

import os
from pathlib import Path

from tr_det.runtime.files import write_text
from tr_det.study.page.recorded import read_run
from tr_det.study.page.render import render
from tr_det.study.page.run_page import run_page
from tr_det.study.page.studied import read_studied
from tr_det.study.page.study_page import study_page

PAGE = "report.html"


def write_page(source: Path, output: Path | None = None, baseline: Path | None = None) -> Path:
    """Write the page of a run or of a study.

    Args:
        source: folder of the run, of the demo or of the study.
        output: the file to write, no folder; by default ``report.html`` in that folder.
        baseline: folder of the run that a run is compared with.

    Returns:
        the file.

    Raises:
        ValueError: what is in the folders cannot be read, or Jinja2 is not installed.
        OSError: there is no such folder, or the file cannot be written.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{os.fspath(source)}: no such folder")
    path = output or source / PAGE
    if path.is_dir():
        raise IsADirectoryError(f"--output={os.fspath(path)!r}: must be a file, not a folder")
    study = read_studied(source)
    if study is not None and baseline is not None:
        raise ValueError("--baseline: a study has its own")
    if study is not None:
        page = study_page(study)
    else:
        page = run_page(read_run(source), read_run(baseline) if baseline else None)
    write_text(path, render(page))
    return path
