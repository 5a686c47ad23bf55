"""Two processes on a CPU, through Detectron2's launcher."""

import json
import multiprocessing

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser
from torch.multiprocessing import ProcessRaisedException

from tests.detection.engine import two_processes
from tr_det.core.quantizers import FREE
from tr_det.detection.engine.processes import run_processes
from tr_det.runtime.cli import one_line_errors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tiny, scenes, tmp_path_factory):
    """Return the folder with the results of two processes, and the error that ended them."""
    folder = tmp_path_factory.mktemp("two")
    data = {name: MetadataCatalog.get(name) for name in (tiny.TRAIN, tiny.VAL)}
    (folder / "datasets.json").write_text(
        json.dumps([(name, m.json_file, m.image_root) for name, m in data.items()])
    )
    cfg = tiny.tiny_config(folder / "out", "SOLVER.TR.FACTOR", 0.05, "DATASETS.TEST", ())
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.TR.GAIN, cfg.SOLVER.MOMENTUM = 1.0, 0.0
    cfg.SOLVER.METHODS = [
        "tracker momentum=0.1",
        "freezing threshold=0.15",
        "weight_average decay=0.9",
    ]
    (folder / "config.yaml").write_text(cfg.dump())
    launched = ["--num-gpus", "2", "--dist-url", "auto"]
    args = default_argument_parser().parse_args(
        [*launched, "--config-file", str(folder / "config.yaml")]
    )
    with pytest.raises(ProcessRaisedException) as ended:
        run_processes(two_processes.main, args)
    return folder, ended.value


@pytest.fixture(scope="module")
def found(run):
    """Return the results of each process."""
    folder, ended = run
    assert (folder / "rank0.pth").exists(), ended
    return [torch.load(folder / f"rank{rank}.pth") for rank in (0, 1)]


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in flat(item)]


WHAT = ["parameters", "codes", "controllers", "tracks", "average"]


def assert_equal(first, second):
    assert flat(first)
    for ours, theirs in zip(flat(first), flat(second), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_processes_agree_bit_for_bit(found):
    first, second = (rank["whole"] for rank in found)
    for what in WHAT:
        assert_equal(first[what], second[what])
    _, talr, rate = first["controllers"]
    assert rate.sum() > 0  # codes have moved at all
    assert talr.std() > 0
    assert first["normalizer"] != second["normalizer"]


def test_a_run_that_a_signal_to_one_process_ends_is_resumed_like_the_whole_one_in_each(found):
    for rank in found:
        whole, resumed = rank["whole"], rank["resumed"]
        assert resumed["start"] == 2
        assert resumed["normalizer"] == whole["normalizer"]
        for what in WHAT:
            assert_equal(resumed[what], whole[what])


def test_loaders_start_workers_as_they_do_in_one_process(found):
    assert {rank["start_method"] for rank in found} == {multiprocessing.get_start_method()}


def test_weights_were_held(run):
    state = torch.load(run[0] / "out/model_final.pth", weights_only=True)["model"]
    assert any((v != FREE).any() for key, v in state.items() if key.endswith(".held"))


def test_calibration_measures_batch_norm_over_the_data_of_all_processes(found):
    means, variances = (torch.stack([rank["own"][i] for rank in found]).double() for i in (0, 1))
    assert not torch.equal(*means)
    within, between = variances.mean(0), means.var(0, correction=0)
    for rank in found:
        mean, variance = rank["averaged"]
        torch.testing.assert_close(mean.double(), means.mean(0))
        torch.testing.assert_close(variance.double(), within + between)


def test_all_processes_evaluate_with_the_statistics_that_the_first_one_saves(found):
    (first, *kept), (second, *taken) = (rank["evaluated"] for rank in found)
    assert not torch.equal(first, second)
    assert all(torch.equal(mean, first) for mean in [*kept, *taken])


def test_all_processes_evaluate_the_average_that_the_first_one_saves(found):
    first, second = (rank["evaluated_average"] for rank in found)
    average = first[-1]
    assert not torch.equal(average, second[-1])
    for before, within, after, _ in (first, second):
        assert torch.equal(within, average)
        assert torch.equal(after, before)  # each goes on with its own
        assert not torch.equal(before, average)


def test_a_mistake_found_in_a_spawned_process_is_one_line(run, capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise run[1]
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: a mistake of the user's\n"
