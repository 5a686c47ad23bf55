"""A run goes on from its last whole checkpoint; a new one begins beside what was left."""

import os
from pathlib import Path

import pytest
import torch

from tr_det.runtime.checkpoints import StrictCheckpointer
from tr_det.runtime.files import write_json, write_text
from tr_det.runtime.run_folder import last_checkpoint, set_aside, trained_folder


def network():
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))


@pytest.fixture
def run_folder(tmp_path):
    """Return a folder with the checkpoints 1, 2 and final; there is another one beside it."""
    checkpointer = StrictCheckpointer(network(), str(tmp_path / "run"))
    for number, name in enumerate(("model_1", "model_2", "model_final")):
        checkpointer.save(name)
        os.utime(tmp_path / f"run/{name}.pth", ns=(number, number))
    StrictCheckpointer(network(), str(tmp_path / "other")).save("model_9")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("note", "damaged", "found"),
    [
        ("model_1.pth\n", [], "model_1"),
        (None, [], "model_final"),
        ("", ["model_final"], "model_2"),
        ("model_final.pth", ["model_final", "model_2"], "model_1"),
        ("../other/model_9.pth", [], "model_final"),
        ("/etc/passwd", [], "model_final"),
        ("root:secret", [], "model_final"),
        ("\0" * 9, [], "model_final"),
        ("x" * 300, [], "model_final"),
    ],
)
def test_a_run_goes_on_from_its_newest_whole_checkpoint(run_folder, caplog, note, damaged, found):
    for name in damaged:
        path = run_folder / f"{name}.pth"
        path.write_bytes(path.read_bytes()[:2])
    path = run_folder / "last_checkpoint"
    path.unlink() if note is None else path.write_text(note)
    assert last_checkpoint(run_folder) == str(run_folder / f"{found}.pth")
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (note != "model_1.pth\n")
    assert "secret" not in caplog.text


@pytest.mark.parametrize("note", ["model_final.pth", "../other/model_9.pth", ""])
def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(run_folder, note):
    for path in run_folder.glob("*.pth"):
        path.write_bytes(b"PK")
    (run_folder / "last_checkpoint").write_text(note)
    with pytest.raises(
        ValueError, match=r"last_checkpoint: .* no checkpoint is whole \(.*_final\.p"
    ):
        StrictCheckpointer(network(), str(run_folder)).resume_or_load("", resume=True)


def test_a_folder_without_checkpoints_has_nothing_to_warn_of(tmp_path, caplog):
    assert last_checkpoint(tmp_path) == ""
    assert not caplog.records


def test_what_an_earlier_run_left_is_moved_and_not_resumed_from(run_folder):
    before = {path.name: path.read_bytes() for path in run_folder.iterdir()}
    (run_folder / "metrics.json").write_text("{}")
    (run_folder / "config.yaml").write_text("{}")
    set_aside(run_folder, "metrics.*", "results.json")
    assert last_checkpoint(run_folder) == ""
    moved = {path.name: path.read_bytes() for path in (run_folder / "earlier_1").iterdir()}
    assert moved == {**before, "metrics.json": b"{}"}
    set_aside(run_folder)
    assert {path.name for path in run_folder.iterdir()} == {"earlier_1", "config.yaml"}


def test_records_of_a_run_whose_checkpoints_are_gone_are_kept(tmp_path):
    (tmp_path / "config.yaml").write_text("the next run's")
    set_aside(tmp_path, "config.yaml", otherwise="metrics.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    (tmp_path / "metrics.json").write_text("records")
    set_aside(tmp_path, otherwise="metrics.json")
    assert (tmp_path / "earlier_1/metrics.json").read_text() == "records"


def test_a_new_run_that_is_killed_at_its_beginning_is_not_resumed_from_an_earlier_one(
    run_folder, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            set_aside(run_folder)
    assert last_checkpoint(run_folder) == ""
    set_aside(run_folder)
    assert {path.name for path in run_folder.iterdir()} == {"earlier_1", "earlier_2"}


def test_the_demo_s_folder_stands_for_the_run_whose_results_it_has(tmp_path):
    for name, ap in (("a", 1.0), ("b", 2.0)):
        results = {"before_qat": {"AP": ap}}
        write_json(tmp_path / "runs" / name / "demo.json", results)
        write_text(tmp_path / "runs" / name / "config.yaml", "MODEL: {}")
    write_json(tmp_path / "results.json", {"before_qat": {"AP": 1.0}})
    run = tmp_path / "runs/a"
    assert trained_folder(tmp_path) == run
    write_text(run / "results.json", "damaged")
    assert trained_folder(run) == run
    assert trained_folder(tmp_path / "nowhere") == tmp_path / "nowhere"
