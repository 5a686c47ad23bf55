#!/usr/bin/env python
"""Install Detectron2 into the running interpreter's environment.

Upstream publishes no wheel for a current stack and is not on the package index under its own
name. Three cases:

- A ``detectron2`` that imports already is left alone.
- Otherwise the index's sdist ``pb1-detectron2`` 0.6 is fetched (its Python files are those of
  upstream's tag v0.6), verified by hash, patched with the fixes of ``fixes.py``, and installed as
  pure Python under the name ``detectron2``. RetinaNet needs none of the compiled ops, and COCO
  evaluation falls back to pycocotools.
- ``--from-git REV`` builds upstream with its compiled ops instead; this needs git, a C++ compiler
  and some minutes.

The index is pip's usual one (``PIP_INDEX_URL``, ``PIP_EXTRA_INDEX_URL``, ``PIP_FIND_LINKS``,
``PIP_TRUSTED_HOST``, ``PIP_NO_INDEX`` or pip's configuration file), PyPI by default.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # this file must not stand where `import detectron2` looks
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from install.fixes import FIXES, FixError, apply_fixes, describe_fixes

REPOSITORY = "https://github.com/facebookresearch/detectron2.git"
DEFAULT_INDEX = "https://pypi.org/simple/"
SDIST = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
OUR_VERSIONS = "0.6+trdet"
VERSION = OUR_VERSIONS + "1"  # raise the last number when the table of fixes changes

# Small projects that upstream's setup.py installs below detectron2.projects.
PROJECTS = {
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

# What v0.6 imports, with upstream's bounds. Left out, because nothing here needs them: black,
# future, pydot.
REQUIRES = [
    "torch>=2.6",
    "torchvision>=0.21",
    "numpy>=1.24",
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore<0.1.6,>=0.1.5",
    "iopath>=0.1.7",
    "omegaconf<2.4,>=2.1",
    "hydra-core>=1.1",
]

SETUP = f"""
from setuptools import find_packages, setup

projects = {PROJECTS}
setup(
    name="detectron2",
    version="{VERSION}",
    description="Detectron2 v0.6 as pure Python, patched for a current stack by tr_det",
    url="https://github.com/facebookresearch/detectron2",
    author="FAIR",
    license="Apache-2.0",
    license_files=["LICENSE", "FIXES.txt"],
    python_requires=">=3.10",
    install_requires={REQUIRES},
    packages=[*find_packages(include=["detectron2", "detectron2.*"]), *projects],
    package_dir=projects,
    package_data={{"detectron2.model_zoo": ["configs/**/*"]}},
)
"""

PROBE = """
import importlib, importlib.metadata, importlib.util, json
found = {"location": None, "version": None, "error": None}
spec = importlib.util.find_spec("detectron2")
if spec is not None and spec.origin is not None:
    found["location"] = spec.origin
    try:
        found["version"] = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        for name in ("engine", "evaluation", "model_zoo", "checkpoint"):
            importlib.import_module("detectron2." + name)
        found["version"] = found["version"] or importlib.import_module("detectron2").__version__
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


class InstallError(Exception):
    """What went wrong, in one line for the user."""


class Installed(NamedTuple):
    """The detectron2 that Python finds.

    Attributes:
        location: folder of the package.
        version: its version, or None if it has no metadata and does not import.
        error: why it does not import, or None if it does.
    """

    location: Path
    version: str | None
    error: str | None

    @property
    def is_ours(self) -> bool:
        """Whether it is a build of ours, or what an interrupted installation left."""
        return self.version is None or self.version.startswith(OUR_VERSIONS)


def find_installed() -> Installed | None:
    """Look for detectron2 in a fresh interpreter, away from the current folder, and import it."""
    with tempfile.TemporaryDirectory() as elsewhere:
        command = [sys.executable, "-W", "ignore", "-c", PROBE]
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallError(f"cannot look for detectron2: {last_line(done.stderr)}")
    found = json.loads(last_line(done.stdout))
    if found["location"] is None:
        return None
    return Installed(Path(found["location"]).parent, found["version"], found["error"])


def pip_setting(name: str) -> str:
    """Return pip's setting, from the environment or else from its configuration files.

    Args:
        name: the setting as pip's configuration files spell it, for example ``index-url``.
    """
    from_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    return pip_configuration().get(name, "") if from_environment is None else from_environment


@functools.lru_cache(maxsize=1)
def pip_configuration() -> dict[str, str]:
    """Return the [global] section of pip's configuration files; empty where there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = re.findall(r"^global\.([\w-]+)=('.*'|\".*\")$", done.stdout, flags=re.MULTILINE)
    return {name: ast.literal_eval(value) for name, value in lines}


def index_urls() -> list[str]:
    """Return the indexes to search, in pip's order."""
    if pip_setting("no-index").strip().lower() in {"1", "true", "yes", "on"}:
        return []
    return [pip_setting("index-url") or DEFAULT_INDEX, *pip_setting("extra-index-url").split()]


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
    urls, find_links = index_urls(), pip_setting("find-links").split()
    hosts = pip_setting("trusted-host").split()
    if not urls and not find_links:
        raise InstallError(f"cannot fetch {SDIST}: pip is set to no-index, without find-links")
    where = re.sub(r"//[^/@ ]+@", "//", " or ".join([*urls, *find_links]))  # without passwords
    what = f"{SDIST} from {where}"
    try:
        finder = PackageFinder(index_urls=urls, find_links=find_links, trusted_hosts=hosts)
        links = [match.link for match in finder.find_matches(SDIST, allow_yanked=True)]
        sdists = [link for link in links if not link.is_wheel]
        if sdists:
            return Path(finder.download(sdists[0], folder))
    except Exception as error:  # of any library below unearth
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InstallError(f"cannot fetch {what} (no network?): {reason}") from error
    raise InstallError(f"cannot fetch {what}: it is not there (no network, or another index?)")


def patched_source(sdist: Path, folder: Path) -> Path:
    """Verify an sdist, unpack it, apply the fixes, and give it a setup.py without compiled ops.

    Args:
        sdist: the file.
        folder: an empty folder, or one to be made.

    Returns:
        Root of the source tree.
    """
    actual = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if actual != SDIST_SHA256:
        raise InstallError(f"{sdist.name} has sha256 {actual}, but {SDIST_SHA256} is expected")
    shutil.unpack_archive(sdist, folder)
    [source] = folder.iterdir()
    apply_fixes(source, FIXES)
    (source / "FIXES.txt").write_text(describe_fixes(FIXES), encoding="utf-8")
    (source / "PKG-INFO").unlink(missing_ok=True)  # has the sdist's other name
    (source / "setup.py").write_text(SETUP, encoding="utf-8")
    return source


def install(source: str) -> None:
    """Build and install, with uv if it is there, or pip; no other package is touched.

    Args:
        source: a folder, or an address that pip understands.
    """
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    has_pip = importlib.util.find_spec("pip") is not None
    if uv is None and not has_pip:
        uv = shutil.which("uv")
    if uv is not None:
        command = [uv, "pip", "install", "--python", sys.executable, "--reinstall", "--no-cache"]
    elif has_pip:
        command = [sys.executable, "-m", "pip", "install", "--force-reinstall", "--no-cache-dir"]
    else:
        raise InstallError("neither pip nor uv is in this environment")
    command += ["--no-deps", "--no-build-isolation", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise InstallError(f"`{' '.join(command)}` failed")


def last_line(text: str) -> str:
    """Return the last line that is not blank, or an empty string."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def say(message: str) -> None:
    """Print a progress line at once."""
    print(f"tools/install/detectron2.py: {message}", flush=True)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Install Detectron2 into this environment, unless it imports already.",
        epilog="Without --from-git: Detectron2 v0.6 as pure Python, patched for a current stack.",
    )
    parser.add_argument("--force", action="store_true", help="replace a detectron2 that is there")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--from-git", metavar="REV", help="build upstream with its compiled ops")
    source.add_argument("--sdist", type=Path, metavar="FILE", help="use this sdist, fetch nothing")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    found = find_installed()
    if found is not None and not args.force:
        if found.error is None and (not found.is_ours or found.version == VERSION):
            say(f"detectron2 {found.version} is installed in {found.location}; left alone")
            return
        if not found.is_ours:
            raise InstallError(
                f"detectron2 {found.version} in {found.location} does not import ({found.error}); "
                "--force replaces it"
            )
    with tempfile.TemporaryDirectory(prefix="detectron2-") as scratch:
        if args.from_git is not None:
            say(f"building {REPOSITORY} at {args.from_git} with its compiled ops: some minutes")
            install(f"git+{REPOSITORY}@{args.from_git}")
        else:
            say(f"installing {args.sdist or SDIST}, verified, with {len(FIXES)} source fixes")
            sdist = args.sdist or fetch_sdist(Path(scratch))
            install(str(patched_source(sdist, Path(scratch, "source"))))
    installed = find_installed()
    if installed is None or installed.error is not None:
        reason = "Python does not find it" if installed is None else installed.error
        raise InstallError(f"detectron2 was installed, but does not import: {reason}")
    say(f"detectron2 {installed.version} installed in {installed.location}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; errors that a user can meet are one line."""
    try:
        run(parse_args(argv))
    except (InstallError, FixError, OSError) as error:
        print(f"tools/install/detectron2.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
