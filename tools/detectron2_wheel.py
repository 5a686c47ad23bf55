"""Build a wheel of Detectron2: from the sdist, mended, or from upstream's git repository."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from detectron2_fetch import SDIST, SDIST_SHA256, fetch_sdist, verify_hash
from detectron2_fixes import FIXES, Fix
from detectron2_messages import InstallError, one_line, run_quietly, say, without_password

OUR_VERSION_PREFIX = "0.6+trdet"
WHEEL_VERSION = OUR_VERSION_PREFIX + "1"  # raise the last number when the table of fixes changes

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
# Lay out and pack


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
