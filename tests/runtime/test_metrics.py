import math

from tr_det.runtime.metrics import MetricsWriter, read_records


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
