"""Fetch Detectron2's sdist from the index of pip's settings, and verify its hash."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

from detectron2_messages import InstallError, one_line_errors, without_password

SDIST = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
DEFAULT_INDEX = "https://pypi.org/simple/"


def pip_setting(name: str) -> str | None:
    """Return pip's setting, from the environment or else from its configuration files.

    Args:
        name: the setting as pip's configuration files spell it, for example ``index-url``.
    """
    from_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    return pip_configuration().get(name) if from_environment is None else from_environment


@functools.lru_cache(maxsize=1)
def pip_configuration() -> dict[str, str]:
    """Return the [global] section of pip's configuration files; empty where there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = re.findall(r"^global\.([\w-]+)=('.*'|\".*\")$", done.stdout, flags=re.MULTILINE)
    return {name: ast.literal_eval(value) for name, value in lines}


def as_bool(setting: str | None) -> bool:
    """Read a flag as pip does."""
    return (setting or "").strip().lower() in {"1", "true", "yes", "on"}


def index_urls() -> list[str]:
    """Return the indexes to search, in pip's order."""
    if as_bool(pip_setting("no-index")):
        return []
    extra = (pip_setting("extra-index-url") or "").split()
    return [pip_setting("index-url") or DEFAULT_INDEX, *extra]


def fetch_sdist(folder: Path) -> Path:
    """Download the sdist without resolving its metadata, which current pips refuse.

    Args:
        folder: where to put the file.

    Returns:
        Path of the downloaded file, not verified yet.
    """
    try:
        from unearth import PackageFinder
    except ImportError as error:
        raise InstallError(
            f"{error.name} is missing: run `pip install -r requirements-detectron2.txt` first"
        ) from error
    urls, find_links = index_urls(), (pip_setting("find-links") or "").split()
    if not urls and not find_links:
        raise InstallError(f"{SDIST} is to be fetched without index (no-index) and find-links")
    where = " or ".join(without_password(url) for url in [*urls, *find_links])
    hosts = (pip_setting("trusted-host") or "").split()
    finder = PackageFinder(index_urls=urls, find_links=find_links, trusted_hosts=hosts)
    with one_line_errors(f"cannot fetch {SDIST} from {where} (no network?)"):
        matches = finder.find_matches(SDIST, allow_yanked=True)
        links = [match.link for match in matches if not match.link.is_wheel]
        if not links:
            raise InstallError(f"{SDIST} is not found on {where} (no network, or another index?)")
        return Path(finder.download(links[0], folder))


def verify_hash(path: Path, expected: str) -> None:
    """Refuse a file whose sha256 is not the expected one.

    Args:
        path: file to check.
        expected: its sha256 in hexadecimal.
    """
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(f"{path.name} has sha256 {actual}, but {expected} is expected")
