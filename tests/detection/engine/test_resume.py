"""A run that is stopped and resumed in a new process is the run that was not stopped."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from tests.detection.engine.resumed_process import train
from tr_det.core.quantizers import FREE
from tr_det.detection import QuantTrainer
from tr_det.detection.engine.resume import NORMALIZER, kept_normalizer, repeatable_scripts

HERE = Path(__file__).resolve().parent
MIXED = "mixed_scenes_train"
STOPS = {1: 0, 4: 2, 6: 0}
"""Where runs are stopped, and the loader workers of the runs that go on from there."""


@pytest.fixture(scope="session")
def mixed_scenes(tiny, scenes, tmp_path_factory):
    """Register the tiny training scenes, every third of them padded to be wide."""
    folder = tmp_path_factory.mktemp("mixed")
    metadata = MetadataCatalog.get(tiny.TRAIN)
    coco = json.loads(Path(metadata.json_file).read_text())
    for number, image in enumerate(coco["images"]):
        pixels = np.asarray(Image.open(Path(metadata.image_root) / image["file_name"]))
        if number % 3 == 0:
            pixels = np.pad(pixels, [(0, 0), (0, 32), (0, 0)])
            image["width"] += 32
        Image.fromarray(pixels).save(folder / image["file_name"])
    (folder / "train.json").write_text(json.dumps(coco))
    if MIXED in DatasetCatalog.list():
        DatasetCatalog.remove(MIXED)
        MetadataCatalog.remove(MIXED)
    entry = (MIXED, str(folder / "train.json"), str(folder))
    register_coco_instances(entry[0], {}, *entry[1:])
    return entry


def config_of(make_config, **solver):
    """Return a config in which everything that a stop could disturb takes part."""
    cfg = make_config("DATASETS.TRAIN", (MIXED,), "TEST.EVAL_PERIOD", 2)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (48, 56, 64, 72), 96
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 1
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    cfg.SOLVER.MAX_ITER = 7
    cfg.SOLVER.TR.FACTOR = 1e-2
    cfg.SEED = -1
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def stopped_at(cfg, done):
    """Return a config whose folder is as a run stopped after ``done`` iterations leaves it."""
    stopped = cfg.clone()
    stopped.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}_stopped_{done}"
    Path(stopped.OUTPUT_DIR).mkdir()
    shutil.copy(f"{cfg.OUTPUT_DIR}/model_{done - 1:07d}.pth", stopped.OUTPUT_DIR)
    (Path(stopped.OUTPUT_DIR) / "last_checkpoint").write_text(f"model_{done - 1:07d}.pth")
    return stopped


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}/{index}")
    else:
        yield path, value


def assert_same_checkpoint(first, second):
    """Compare everything in two checkpoint files bit for bit."""
    ours, theirs = (dict(leaves(torch.load(path, weights_only=True))) for path in (first, second))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, theirs[key], rtol=0, atol=0, msg=key)
        else:
            assert value == theirs[key], key


@pytest.fixture
def run_elsewhere(mixed_scenes, tiny, scenes, tmp_path):
    """Return ``run([(config, first iteration)])``, which runs them in a new process.

    In this one other tests may have had TorchScript compile the losses as it does for itself,
    which cannot be undone.
    """
    val = MetadataCatalog.get(tiny.VAL)
    datasets = [mixed_scenes, (tiny.VAL, val.json_file, val.image_root)]

    def run(starts):
        files = {}
        for number, (cfg, start) in enumerate(starts):
            files[str(tmp_path / f"{number}.yaml")] = start
            (tmp_path / f"{number}.yaml").write_text(cfg.dump())
        task = tmp_path / "task.json"
        task.write_text(
            json.dumps({"datasets": datasets, "configs": list(files), "start_iters": files})
        )
        path = os.pathsep.join(["", str(HERE.parents[2]), *sys.path])
        subprocess.run(
            [sys.executable, str(HERE / "resumed_process.py"), str(task)],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    return run


def with_methods(make_config):
    """Return the same with methods, under which weights are soon held."""
    methods = ["tracker momentum=0.1", "freezing threshold=0.15", "weight_average decay=0.9"]
    cfg = config_of(make_config, METHODS=methods, MOMENTUM=0.0)
    cfg.OUTPUT_DIR += "_methods"
    cfg.SOLVER.TR.FACTOR, cfg.SOLVER.TR.GAIN = 0.5, 1.0
    return cfg


@pytest.mark.slow
def test_runs_resumed_in_a_new_process_end_bit_for_bit_like_the_one_not_stopped(
    make_config, run_elsewhere
):
    cfg, methods = config_of(make_config), with_methods(make_config)
    run_elsewhere([(cfg, 0), (methods, 0)])
    stops = []
    for done, workers in STOPS.items():
        stopped = stopped_at(cfg, done)
        stopped.DATALOADER.NUM_WORKERS = workers
        stops.append((stopped, done))
    stopped_with_methods = stopped_at(methods, 4)
    run_elsewhere([*stops, (stopped_with_methods, 4)])
    for stopped, _ in stops:
        assert_same_checkpoint(
            f"{stopped.OUTPUT_DIR}/model_final.pth", f"{cfg.OUTPUT_DIR}/model_final.pth"
        )
    for name in ("model_final", "model_averaged"):
        assert_same_checkpoint(
            f"{stopped_with_methods.OUTPUT_DIR}/{name}.pth", f"{methods.OUTPUT_DIR}/{name}.pth"
        )
    # More weights were held after the stop than before.
    held = []
    for place in (
        f"{stopped_with_methods.OUTPUT_DIR}/model_0000003",
        f"{methods.OUTPUT_DIR}/model_final",
    ):
        state = torch.load(f"{place}.pth", weights_only=True)["model"]
        held.append(sum((v != FREE).sum().item() for k, v in state.items() if k.endswith(".held")))
    assert 0 < held[0] < held[1]


def test_a_checkpoint_without_run_state_goes_on_with_a_warning(
    make_config, mixed_scenes, caplog, monkeypatch
):
    cfg = config_of(make_config, MAX_ITER=2)
    train(cfg)
    cfg.SOLVER.MAX_ITER = 3
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    saved = torch.load(path, weights_only=True)
    del saved["trainer"]["hooks"]["RunState"]
    torch.save(saved, path)
    monkeypatch.setattr(logging.getLogger("tr_det"), "propagate", True)
    assert train(cfg).iter == 3
    assert "holds no seed and no loss normalizer" in caplog.text


@pytest.fixture
def as_stock_v06_writes(make_config, mixed_scenes):
    """Return ``make(optimizer) -> cfg`` of a run stopped after 2 of 4 iterations."""

    def make(optimizer):
        cfg = config_of(make_config, MAX_ITER=4, OPTIMIZER=optimizer)
        cfg.DATASETS.TEST = ()
        train(cfg)
        stopped = stopped_at(cfg, 2)
        path = Path(stopped.OUTPUT_DIR) / "model_0000001.pth"
        saved = torch.load(path, weights_only=True)
        saved["trainer"] = {"iteration": 1}
        torch.save(saved, path)
        return stopped

    return make


def test_a_stock_checkpoint_without_optimizer_goes_on_at_its_learning_rate(
    as_stock_v06_writes, caplog, monkeypatch
):
    cfg = as_stock_v06_writes("SGD")
    monkeypatch.setattr(logging.getLogger("tr_det"), "propagate", True)
    trainer = QuantTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert "holds no optimizer" in caplog.text
    assert trainer.start_iter == 2
    half_of_a_cosine = cfg.SOLVER.BASE_LR / 2
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(half_of_a_cosine)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_tr_scheduling_does_not_go_on_without_its_controllers(as_stock_v06_writes):
    trainer = QuantTrainer(as_stock_v06_writes("SGDT"))
    with pytest.raises(ValueError, match="holds no optimizer, so its TR controllers cannot go on"):
        trainer.resume_or_load(resume=True)


def test_another_seed_in_the_config_does_not_change_a_resumed_run(make_config, mixed_scenes):
    cfg = config_of(make_config, MAX_ITER=3)
    whole = train(cfg)
    stopped = stopped_at(cfg, 2)
    stopped.SEED = 12345
    resumed = train(stopped)
    assert resumed.run_state.seed == whole.run_state.seed != 12345
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], value, rtol=0, atol=0)


def test_a_changed_batch_size_is_reported(make_config, mixed_scenes, caplog, monkeypatch):
    cfg = config_of(make_config, MAX_ITER=3)
    train(cfg)
    stopped = stopped_at(cfg, 2)
    stopped.SOLVER.IMS_PER_BATCH = 3
    monkeypatch.setattr(logging.getLogger("tr_det"), "propagate", True)
    train(stopped)
    assert "had 1 processes and 2 images per iteration" in caplog.text


def test_another_learning_rate_on_resuming_is_reported(
    make_config, mixed_scenes, caplog, monkeypatch
):
    cfg = config_of(make_config, MAX_ITER=3)
    train(cfg)
    stopped = stopped_at(cfg, 2)
    stopped.SOLVER.BASE_LR = 0.5
    monkeypatch.setattr(logging.getLogger("tr_det"), "propagate", True)
    train(stopped)
    assert "SOLVER.BASE_LR=0.5 has no effect: the resumed run goes on with its own" in caplog.text


def test_a_tr_scheduled_run_does_not_go_on_with_a_plain_optimizer(make_config, mixed_scenes):
    cfg = config_of(make_config, MAX_ITER=3)
    train(cfg)
    stopped = stopped_at(cfg, 2)
    stopped.SOLVER.OPTIMIZER = "SGD"
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER='SGD': the run to resume was TR-sched"):
        train(stopped)


def test_the_loss_normalizer_is_as_before_or_absent():
    model = torch.nn.Identity()
    with kept_normalizer(model):
        setattr(model, NORMALIZER, 5.0)
    assert not hasattr(model, NORMALIZER)
    setattr(model, NORMALIZER, 1.0)
    with kept_normalizer(model):
        setattr(model, NORMALIZER, 5.0)
    assert getattr(model, NORMALIZER) == 1.0


def test_scripts_are_left_alone_on_a_gpu():
    read = torch._C._get_graph_executor_optimize
    with repeatable_scripts(torch.device("cpu")):
        assert not read()
    with repeatable_scripts(torch.device("cuda")):
        assert read()
