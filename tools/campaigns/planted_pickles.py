"""Code in pickles: checkpoints, what ``last_checkpoint`` names, exported programs."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from campaigns import tiny
from campaigns.children import command
from campaigns.plants import IMAGE, Case, Place


class _Evil:
    """Its pickle runs a command when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def _files(evil: _Evil) -> dict[str, bytes]:
    """Return names of files -> what reading them would run."""
    zipped = io.BytesIO()
    torch.save({"model": {"x": evil}}, zipped)
    legacy = io.BytesIO()
    torch.save({"model": {"x": evil}}, legacy, _use_new_zipfile_serialization=False)
    plain = pickle.dumps({"model": {"x": evil}})
    return {
        "plain.pkl": plain,
        "old protocol.pkl": pickle.dumps({"model": {"x": evil}}, protocol=0),
        "torch's.pkl": zipped.getvalue(),
        "plain.pth": plain,
        "torch's.pth": zipped.getvalue(),
        "legacy torch's.pth": legacy.getvalue(),
    }


NAMES = tuple(_files(_Evil("true")))


def cases() -> Iterator[Case]:
    """Yield pickles in every format, for every tool that reads weights."""
    for name in NAMES:
        for tool in ("train_net", "train_net --eval-only", "dequantize", "unfold_norms"):
            yield _pickle_case(name, tool)
        for tool in ("export_model", "predict", "pack_checkpoint", "train_classifier"):
            yield _pickle_case(name, tool)
        yield _pickle_case(name, "train_classifier --eval-only")
    for name in ("torch's.pth", "plain.pth", "plain.pkl"):
        for side in ("detector", "classifier"):
            for where in ("in", "beside", "as"):
                yield Case(
                    f"{name} {where} the {side}'s folder: --resume", _resume(side, name, where)
                )
    yield Case("torch's.pth in a classifier's folder: report", _report)
    yield Case("pickles in an exported program: predict", _program)


def _pickle_case(name: str, tool: str) -> Case:
    def plant(place: Place) -> Callable[[], Any]:
        file = place.folder / name.replace(" ", "_")
        file.write_bytes(_files(_Evil(f"touch {place.ran}"))[name])
        config = place.shared / tiny.DETECTOR
        read, named = ("--config-file", config), ("MODEL.WEIGHTS", file)
        theirs = ("--config-file", place.shared / tiny.CLASSIFIER)
        image = place.folder / IMAGE
        weights = ("model.weights", file)
        return {
            "train_net": command("train_net.py", *read, *named),
            "train_net --eval-only": command("train_net.py", *read, "--eval-only", *named),
            "dequantize": command("dequantize.py", "--output", "o.pth", *read, *named),
            "unfold_norms": command("unfold_norms.py", "--output", "o.pth", *read, *named),
            "export_model": command("export_model.py", config, "--checkpoint", file),
            "predict": command("predict.py", file, image, *read),
            "pack_checkpoint": command("pack_checkpoint.py", file, "o.pth"),
            "train_classifier": command("train_classifier.py", *theirs, *weights),
            "train_classifier --eval-only": command(
                "train_classifier.py", *theirs, "--eval-only", *weights
            ),
        }[tool]

    return Case(f"{name}: {tool}", plant)


def _resume(side: str, name: str, where: str) -> Callable[[Place], Callable[[], Any]]:
    """Return what plants a checkpoint that ``last_checkpoint`` names."""

    def plant(place: Place) -> Callable[[], Any]:
        run = place.folder / "out"
        shutil.copytree(place.shared / side / "out", run)
        for path in (*run.glob("model_*.pth"), run / "results.json"):
            path.unlink(missing_ok=True)
        data = _files(_Evil(f"touch {place.ran}"))[name]
        suffix = Path(name).suffix
        folder = run if where == "in" else place.folder
        (folder / f"model_0000003{suffix}").write_bytes(data)
        named = {"in": "", "beside": "../", "as": f"{place.folder}/"}[where]
        (run / "last_checkpoint").write_text(f"{named}model_0000003{suffix}")
        return getattr(tiny, side)(place.shared, True)

    return plant


def _report(place: Place) -> Callable[[], Any]:
    run = place.folder / "out"
    shutil.copytree(place.shared / "classifier/out", run)
    for path in run.glob("model_*.pth"):
        path.write_bytes(_files(_Evil(f"touch {place.ran}"))["torch's.pth"])
    return command("report.py", run)


def _program(place: Place) -> Callable[[], Any]:
    """Replace every pickle in a program of torch.export."""
    files, program = _files(_Evil(f"touch {place.ran}")), place.folder / "model.pt2"
    source = zipfile.ZipFile(place.shared / "detector/model.pt2")
    with source, zipfile.ZipFile(program, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            is_pickle = entry.filename.endswith((".pt", ".pkl")) or data[:1] == b"\x80"
            target.writestr(entry, files["torch's.pth"] if is_pickle else data)
    image = place.folder / IMAGE
    return command("predict.py", program, image)
