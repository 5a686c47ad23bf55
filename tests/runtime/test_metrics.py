import math

import pytest

from tr_det.runtime import files
from tr_det.runtime.metrics import MetricsFile, MetricsWriter, read_records


def test_a_resumed_run_drops_what_was_written_past_its_checkpoint(tmp_path):
    writer = MetricsWriter(tmp_path)
    for iteration in range(4):
        writer.write(iteration, {"loss": iteration / 2, "tr/target": math.nan})
    writer.close()
    with (tmp_path / "metrics.json").open("a") as file:
        file.write('{"iteration": 4, "lo')  # killed while writing
    writer = MetricsWriter(tmp_path, start=2)
    writer.write(2, {"loss": 7.0})
    writer.close()
    rows = read_records(tmp_path / "metrics.json")
    assert rows == [
        {"iteration": 0, "loss": 0.0},
        {"iteration": 1, "loss": 0.5},
        {"iteration": 2, "loss": 7.0},
    ]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_resumed_run_s_values_replace_those_of_the_stopped_one(tmp_path):
    """Detectron2 appends; evaluations are records of their own."""
    path = tmp_path / "metrics.json"
    path.write_text(
        '{"iteration": 1, "loss": 1}\n{"iteration": 3, "loss": 9}\n{"iteration": 2, "loss": 2}\n'
        '{"iteration": 3, "loss": NaN}\n{"iteration": 3, "bbox/AP": 5}\n{"iteration": 4, "lo'
    )
    first, second, third = read_records(path)
    assert (first, second) == ({"iteration": 1, "loss": 1}, {"iteration": 2, "loss": 2})
    assert third["bbox/AP"] == 5
    assert math.isnan(third["loss"])
    assert read_records(tmp_path / "missing.json") == []


def test_lines_of_a_stopped_run_stay_as_they_are(tmp_path):
    path = tmp_path / "metrics.json"
    lines = ['{"loss": 1.0, "iteration": 0}\n', '{"iteration": 1, "loss": 2e-1}\n']
    lines += ['{"iteration": 1, "test/accuracy": 5.0}\n', '{"iteration": 2, "loss": 3}\n']
    path.write_text("".join(lines))
    resumed = MetricsFile(tmp_path, start=2)
    assert path.read_text() == "".join(lines[:3])
    assert [sorted(record) for record in resumed.before] == [
        ["iteration", "loss"],
        ["iteration", "test/accuracy"],
    ]
    number = path.stat().st_ino
    MetricsFile(tmp_path, start=2)
    assert path.stat().st_ino == number  # with nothing to drop it is not written again


def test_what_is_dropped_is_lost_only_when_the_rest_is_written(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 0, "loss": 1}\n{"iteration": 1, "loss": 1}\n')

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        MetricsFile(tmp_path, start=1)
    assert len(read_records(path)) == 2


def test_damaged_lines_are_left_out_with_one_warning(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    damaged = [
        "{",
        "3",
        "[]",
        '{"loss": 1}',
        '{"iteration": "1"}',
        '{"iteration": 1, "loss": null}',
    ]
    damaged += ["\0\0", "[" * 100_000, '{"iteration": true, "loss": 1}']
    good = ['{"iteration": 0, "loss": 1}', '{"iteration": 1, "loss": 2}']
    path.write_bytes("\n".join([good[0], *damaged, good[1]]).encode() + b"\n\xff\xfe")
    assert read_records(path) == [{"iteration": 0, "loss": 1}, {"iteration": 1, "loss": 2}]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: {len(damaged) + 1} damaged lines are left out"
    ]
