#!/usr/bin/env python
"""Install Detectron2 into the running interpreter's environment.

Upstream publishes no wheel for a current stack and is not on the package index under its own
name. Three cases:

- ``detectron2`` imports already: it is left alone.
- Otherwise the index's sdist ``pb1-detectron2`` 0.6 is fetched (its Python files are those of
  upstream's tag v0.6), verified by hash, mended with the fixes of ``detectron2_fixes.py``, and
  installed as a pure-Python wheel named ``detectron2``. RetinaNet needs none of the compiled ops,
  and COCO evaluation falls back to pycocotools.
- ``--from-git REV`` builds upstream with its compiled ops instead; this needs git, a C++ compiler
  and some minutes.

The index is pip's usual one (``PIP_INDEX_URL``, ``PIP_EXTRA_INDEX_URL``, ``PIP_FIND_LINKS``,
``PIP_TRUSTED_HOST``, ``PIP_NO_INDEX`` or pip's configuration file), PyPI by default.

Examples:
    ::
        python tools/install_detectron2.py
        python tools/install_detectron2.py --force --wheel-dir wheels
        python tools/install_detectron2.py --from-git main
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2_messages import InstallError, last_line, run_quietly, say
from detectron2_wheel import OUR_VERSION_PREFIX, WHEEL_VERSION, build_from_git, build_from_sdist

REPOSITORY = "https://github.com/facebookresearch/detectron2.git"

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


# -------------------------------------------------------------------------------------------------
# What is installed


@dataclass(frozen=True)
class Installed:
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
    def is_our_leftover(self) -> bool:
        """Whether it is an older build of ours, or what an interrupted installation left."""
        if self.version is None:
            return self.error is not None and "site-packages" in self.location.parts
        ours = self.version.startswith(OUR_VERSION_PREFIX)
        return ours and (self.error is not None or self.version != WHEEL_VERSION)


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


def check_installed() -> Installed:
    """Import what was installed, as a user would."""
    installed = find_installed()
    if installed is None:
        raise InstallError("detectron2 was installed, but Python does not find it")
    if installed.error is not None:
        hint = ""
        if "pkg_resources" in installed.error:
            hint = "; this revision needs pkg_resources: pip install 'setuptools<82'"
        raise InstallError(f"detectron2 does not import: {installed.error}{hint}")
    return installed


# -------------------------------------------------------------------------------------------------
# Install


def installer() -> list[str]:
    """Return the command that installs into this environment: with uv if it is there, or pip."""
    beside_python = shutil.which("uv", path=str(Path(sys.executable).parent))
    has_pip = importlib.util.find_spec("pip") is not None
    uv = beside_python or (None if has_pip else shutil.which("uv"))
    if uv is not None:
        return [uv, "pip", "install", "--python", sys.executable]
    if has_pip:
        return [sys.executable, "-m", "pip", "install"]
    raise InstallError("neither pip nor uv is in this environment")


def install(wheel: Path, leftover: Path | None) -> None:
    """Install a wheel, without touching any other package.

    Args:
        wheel: the file.
        leftover: folder of an incomplete detectron2 to remove first, or None.
    """
    if leftover is not None:
        shutil.rmtree(leftover, ignore_errors=True)
    command = installer()
    again = "--reinstall" if command[1] == "pip" else "--force-reinstall"
    run_quietly([*command, "--no-deps", again, str(wheel)])


def keep(wheel: Path, folder: Path) -> Path:
    """Copy the wheel into a folder: under another name first, then renamed.

    Args:
        wheel: the file.
        folder: where to keep it; created if missing.

    Returns:
        Path of the copy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{wheel.name}.part"
    shutil.copyfile(wheel, aside)
    return aside.replace(folder / wheel.name)


# -------------------------------------------------------------------------------------------------
# Command line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="install_detectron2.py",
        description="Install Detectron2 into this environment, unless it imports already.",
        epilog="Without --from-git: Detectron2 v0.6 as pure Python, mended for a current stack.",
    )
    parser.add_argument("--force", action="store_true", help="replace a detectron2 that is there")
    parser.add_argument("--from-git", metavar="REV", help="build upstream with its compiled ops")
    parser.add_argument("--repository", metavar="URL", default=REPOSITORY, help="for --from-git")
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="use this sdist, fetch nothing")
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="keep the built wheel there")
    args = parser.parse_args(argv)
    if args.from_git is not None and args.sdist is not None:
        parser.error("--from-git and --sdist exclude each other")
    return args


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    found = find_installed()
    if found is not None and not args.force and not found.is_our_leftover:
        if found.error is not None:
            raise InstallError(
                f"detectron2 {found.version} in {found.location} does not import ({found.error}); "
                "--force replaces it"
            )
        say(f"detectron2 {found.version} is installed in {found.location}; left alone")
        return
    leftover = found.location if found is not None and found.version is None else None
    with tempfile.TemporaryDirectory(prefix="detectron2-") as scratch:
        work = Path(scratch)
        if args.from_git is not None:
            wheel = build_from_git(work, args.from_git, args.repository)
        else:
            wheel = build_from_sdist(work, args.sdist)
        if args.wheel_dir is not None:
            say(f"wheel kept: {keep(wheel, args.wheel_dir)}")
        install(wheel, leftover)
    installed = check_installed()
    say(f"detectron2 {installed.version} installed in {installed.location}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; errors that a user can meet are one line."""
    try:
        run(parse_args(argv))
    except (InstallError, OSError) as error:
        print(f"install_detectron2: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
