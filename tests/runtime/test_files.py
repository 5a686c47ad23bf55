"""Files are whole or not there; JSON is what every strict parser reads."""

import json
import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from tr_det.runtime import files
from tr_det.runtime.files import write_json, written_aside


def strict_load(path: Path):
    def refuse(token: str):
        raise AssertionError(f"{token} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_json_is_strict_and_plain(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_json(
        path,
        {
            "nan": math.nan,
            "inf": [math.inf, -math.inf, 1.5],
            "np_nan": np.float32("nan"),
            "scalars": (np.float32(0.5), np.int64(7), np.bool_(True), np.array(3)),
            "array": np.array([[1.0, np.nan], [2.0, 3.0]]),
            "path": tmp_path,
            np.int64(5): "numpy key",
            "kept": [True, None, 3, "NaN", "é"],
        },
    )
    loaded = strict_load(path)
    assert loaded == {
        "nan": None,
        "inf": [None, None, 1.5],
        "np_nan": None,
        "scalars": [0.5, 7, True, 3],
        "array": [[1.0, None], [2.0, 3.0]],
        "path": str(tmp_path),
        "5": "numpy key",
        "kept": [True, None, 3, "NaN", "é"],
    }
    assert loaded["scalars"][2] is True
    assert os.listdir(path.parent) == ["results.json"]


@pytest.mark.parametrize("step", ["fsync", "replace", None])
def test_what_cannot_be_written_keeps_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})

    def fail(*_):
        raise OSError("disk full")

    if step:
        monkeypatch.setattr(files.os, step, fail)
    with pytest.raises((OSError, TypeError), match="disk full|set is not JSON"):
        write_json(path, {"new": 2 if step else {2}})
    assert strict_load(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"model": torch.zeros(100_000)}, path),
        lambda path: path.write_bytes(bytes(400_000)),
    ],
    ids=["torch", "bytes"],
)
def test_a_full_disk_is_an_error_of_the_system_with_the_file(tmp_path, write):
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with (
            pytest.raises(OSError, match=f"File too large: '{path}'"),
            written_aside(path) as aside,
        ):
            write(aside)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.pth"]


def test_written_aside_cleans_up_when_the_block_is_interrupted(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def interrupted():
        with written_aside(path) as aside:
            assert aside.suffix == ".png"
            assert aside != path
            aside.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["picture.png"]


def test_written_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "results.json", {})
    mode = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "results.json").stat().st_mode == mode


def test_a_folder_that_cannot_be_is_named_before_the_work(tmp_path):
    write_json(tmp_path / "file", 1)
    files.require_writable(tmp_path / "new" / "folder" / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(NotADirectoryError) as error:
        files.require_writable(tmp_path / "file" / "a.json")
    assert error.value.filename == str(tmp_path / "file")
    with pytest.raises(IsADirectoryError):
        files.require_writable(tmp_path)
