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
import ast
import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from detectron2_fixes import FIXES, Fix

SDIST = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
OUR_VERSION_PREFIX = "0.6+trdet"
WHEEL_VERSION = OUR_VERSION_PREFIX + "1"  # raise the last number when the table of fixes changes
REPOSITORY = "https://github.com/facebookresearch/detectron2.git"
DEFAULT_INDEX = "https://pypi.org/simple/"

# Small projects that upstream's setup.py installs below detectron2.projects.
PROJECTS = {
    "point_rend": "projects/PointRend/point_rend",
    "deeplab": "projects/DeepLab/deeplab",
    "panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

# What v0.6 imports, with upstream's bounds. Left out, because nothing here needs them: black,
# future, pydot.
REQUIRES = (
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
)

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


def say(message: str) -> None:
    """Print a progress line at once."""
    print(f"install_detectron2: {message}", flush=True)


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


def last_line(text: str) -> str:
    """Return the last line that is not blank, or an empty string."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


# -------------------------------------------------------------------------------------------------
# Fetch


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


@contextlib.contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises inside into an :class:`InstallError` of one line.

    Args:
        what: start of the line.
    """
    try:
        yield
    except InstallError:
        raise
    except Exception as error:
        raise InstallError(f"{what}: {one_line(error)}") from error


def without_password(url: str) -> str:
    """Return an address as it may be shown."""
    return re.sub(r"//[^/@]+@", "//", url)


def one_line(error: BaseException) -> str:
    """Return an exception's message in one line, with its class's name."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def verify_hash(path: Path, expected: str) -> None:
    """Refuse a file whose sha256 is not the expected one.

    Args:
        path: file to check.
        expected: its sha256 in hexadecimal.
    """
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(f"{path.name} has sha256 {actual}, but {expected} is expected")


# -------------------------------------------------------------------------------------------------
# Unpack and mend


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a gzipped tar of one top-level folder; nothing is written outside ``folder``.

    Args:
        archive: the file.
        folder: an empty folder to unpack into.

    Returns:
        The top-level folder.
    """
    tops = set()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                    raise InstallError(f"{archive.name}: refusing to unpack {member.name!r}")
                if not (member.isfile() or member.isdir()):
                    raise InstallError(f"{archive.name}: {member.name!r} is no file or folder")
                tops.add(name.parts[0])
                content = tar.extractfile(member)
                if content is not None:
                    target = folder.joinpath(*name.parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content, target.open("wb") as sink:
                        shutil.copyfileobj(content, sink)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InstallError(f"cannot unpack {archive.name}: {one_line(error)}") from error
    if len(tops) != 1:
        raise InstallError(f"{archive.name} should hold one folder, but holds {sorted(tops)}")
    return folder / tops.pop()


def apply_fixes(source: Path, fixes: Iterable[Fix]) -> None:
    """Apply the fixes to a source tree; a text that is not found as often as stated is an error.

    Args:
        source: root of the tree.
        fixes: what to change.
    """
    for fix in fixes:
        for edit in fix.edits:
            path = source / edit.path
            if not path.is_file():
                raise InstallError(f"fix {fix.name}: {edit.path} does not exist")
            text = path.read_text(encoding="utf-8")
            count = text.count(edit.old)
            if count != edit.count:
                line = edit.old.strip().splitlines()[0]
                raise InstallError(
                    f"fix {fix.name}: {edit.path} has {line!r} {count} times, expected {edit.count}"
                )
            path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def check_syntax(package: Path) -> None:
    """Parse every file, so that a fix that breaks one is seen now."""
    for path in sorted(package.rglob("*.py")):
        try:
            ast.parse(path.read_bytes(), filename=str(path))
        except SyntaxError as error:
            raise InstallError(f"{path.name}: {one_line(error)}") from error


# -------------------------------------------------------------------------------------------------
# Build


def stage_wheel(source: Path, stage: Path) -> None:
    """Lay out what the wheel holds: the package, its projects and configs, and the metadata.

    Args:
        source: root of the mended source tree.
        stage: an empty folder.
    """
    skip = shutil.ignore_patterns("__pycache__", "*.pyc", "csrc")
    shutil.copytree(source / "detectron2", stage / "detectron2", ignore=skip)
    for name, path in PROJECTS.items():
        if (source / path).is_dir():
            shutil.copytree(source / path, stage / "detectron2/projects" / name, ignore=skip)
    configs = stage / "detectron2/model_zoo/configs"
    if not configs.is_dir() and (source / "configs").is_dir():  # a checkout, not the sdist
        shutil.copytree(source / "configs", configs)
    info = stage / f"detectron2-{WHEEL_VERSION}.dist-info"
    write_metadata(info, source / "LICENSE")


def write_metadata(info: Path, license_file: Path) -> None:
    """Write the wheel's dist-info folder, all but RECORD.

    Args:
        info: folder to create.
        license_file: Detectron2's licence, copied if it exists.
    """
    info.mkdir(parents=True)
    requires = "".join(f"Requires-Dist: {requirement}\n" for requirement in REQUIRES)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\n"
        "Name: detectron2\n"
        f"Version: {WHEEL_VERSION}\n"
        "Summary: Detectron2 v0.6 as pure Python, mended for a current stack by tr_det\n"
        "Home-page: https://github.com/facebookresearch/detectron2\n"
        "Author: FAIR\n"
        "License: Apache-2.0\n"
        "Requires-Python: >=3.10\n"
        f"{requires}\n"
        "Changed files and reasons are listed in FIXES.txt beside this file.\n",
        encoding="utf-8",
    )
    (info / "WHEEL").write_text(
        "Wheel-Version: 1.0\nGenerator: tr_det\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        encoding="utf-8",
    )
    (info / "top_level.txt").write_text("detectron2\n", encoding="utf-8")
    (info / "FIXES.txt").write_text(describe_fixes(FIXES), encoding="utf-8")
    if license_file.is_file():
        shutil.copy(license_file, info / "LICENSE")


def describe_fixes(fixes: Iterable[Fix]) -> str:
    """Return the table of fixes as text: name, reason, upstream change, changed files."""
    blocks = []
    for fix in fixes:
        files = ", ".join(sorted({edit.path for edit in fix.edits}))
        why = textwrap.fill(fix.why, 96, initial_indent="    ", subsequent_indent="    ")
        blocks.append(f"{fix.name}\n{why}\n    upstream: {fix.reference}\n    files: {files}\n")
    return "\n".join(blocks)


def pack_wheel(stage: Path, folder: Path) -> Path:
    """Pack a staged wheel, RECORD included.

    Args:
        stage: what :func:`stage_wheel` laid out.
        folder: where the wheel goes.

    Returns:
        Path of the wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run_quietly([sys.executable, "-m", "wheel", "pack", "--dest-dir", str(folder), str(stage)])
    return folder / f"detectron2-{WHEEL_VERSION}-py3-none-any.whl"


def build_from_sdist(work: Path, sdist: Path | None) -> Path:
    """Fetch (unless given), verify, unpack, mend and build.

    Args:
        work: a scratch folder.
        sdist: an sdist that is already here, or None.

    Returns:
        Path of the wheel.
    """
    if sdist is None:
        say(f"fetching {SDIST}")
        sdist = fetch_sdist(work)
    elif not sdist.is_file():
        raise InstallError(f"{sdist} does not exist")
    verify_hash(sdist, SDIST_SHA256)
    source = unpack(sdist, work / "source")
    apply_fixes(source, FIXES)
    say(f"sha256 verified, {len(FIXES)} source fixes applied")
    stage_wheel(source, work / "stage")
    check_syntax(work / "stage")
    return pack_wheel(work / "stage", work / "wheel")


def build_from_git(work: Path, revision: str, repository: str) -> Path:
    """Build upstream with its compiled ops against the torch that is installed.

    Args:
        work: a scratch folder.
        revision: branch, tag or commit.
        repository: address of the git repository.

    Returns:
        Path of the wheel.
    """
    for module in ("torch", "setuptools", "wheel", "pip"):
        if importlib.util.find_spec(module) is None:
            raise InstallError(f"--from-git needs {module} in this environment")
    if shutil.which("git") is None:
        raise InstallError("--from-git needs git")
    address = f"git+{repository}@{revision}"
    say(f"building {without_password(address)} with its compiled ops; this takes minutes")
    # pip's cache of built wheels knows the commit, but not the torch that it was built against
    command = [sys.executable, "-m", "pip", "wheel", "--no-cache-dir"]
    command += ["--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", str(work / "wheel"), address], check=False)
    wheels = list((work / "wheel").glob("detectron2-*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise InstallError(f"building {without_password(address)} failed; pip's messages are above")
    return wheels[0]


# -------------------------------------------------------------------------------------------------
# Install


def run_quietly(command: Sequence[str]) -> None:
    """Run a command; its output is shown, shortened to one line, only if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = last_line(done.stderr) or last_line(done.stdout)
        raise InstallError(f"`{' '.join(command)}` failed: {reason}")


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
