"""A run that is stopped and resumed in a new process is the run that was not stopped."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from tests.detection.engine import resumed_process
from tests.detection.engine.resumed_process import train
from tr_det.core.quantizers import FREE
from tr_det.detection import QuantTrainer
from tr_det.detection.engine.calibration import NORMALIZER, outside_training
from tr_det.detection.engine.resume import repeatable_scripts

MIXED = "mixed_scenes_train"
STOPS = {1: 0, 4: 2}
"""Where runs are stopped, and the loader workers of the runs that go on from there."""


@pytest.fixture(scope="module")
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
    entry = (MIXED, str(folder / "train.json"), str(folder))
    tiny.register(*entry)
    return entry


def config_of(tiny, folder, *overrides):
    """Return a config in which everything that a stop could disturb takes part."""
    cfg = tiny.tiny_config(folder, "DATASETS.TRAIN", (MIXED,), "TEST.EVAL_PERIOD", 2)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (48, 56, 64, 72), 96
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 1
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.KEEP_CHECKPOINTS = 1, 0
    cfg.SOLVER.TR.FACTOR = 1e-2
    cfg.SEED = -1
    cfg.merge_from_list(list(overrides))
    return cfg


def stopped_at(cfg, done, folder, *overrides):
    """Return a config whose folder is as a run stopped after ``done`` iterations leaves it."""
    stopped = cfg.clone()
    stopped.merge_from_list(["OUTPUT_DIR", str(folder), *overrides])
    folder.mkdir()
    shutil.copy(f"{cfg.OUTPUT_DIR}/model_{done - 1:07d}.pth", folder)
    (folder / "last_checkpoint").write_text(f"model_{done - 1:07d}.pth")
    return stopped


def leaves(value, path=""):
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{path}/{key}")
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
def run_elsewhere(run_in_new, tmp_path):
    """Return ``run(datasets, runs)``: train by configs, each from an iteration, in a new process.

    In this one, earlier tests may have made TorchScript recompile the losses, which cannot be
    undone.
    """

    def run(datasets, runs):
        written = []
        for cfg, start in runs:
            path = tmp_path / f"{Path(cfg.OUTPUT_DIR).name}.yaml"
            path.write_text(cfg.dump())
            written.append((str(path), start))
        run_in_new(1, resumed_process.main, datasets, written)

    return run


@pytest.mark.slow
def test_runs_resumed_in_a_new_process_end_bit_for_bit_like_the_one_not_stopped(
    tiny, mixed_scenes, run_elsewhere, tmp_path
):
    val = MetadataCatalog.get(tiny.VAL)
    datasets = [mixed_scenes, (tiny.VAL, val.json_file, val.image_root)]
    cfg = config_of(tiny, tmp_path / "whole", "SOLVER.MAX_ITER", 7)
    # Under these methods weights are soon held.
    methods = ["tracker momentum=0.1", "freezing threshold=0.15", "weight_average decay=0.9"]
    with_methods = cfg.clone()
    with_methods.OUTPUT_DIR = str(tmp_path / "methods")
    with_methods.SOLVER.METHODS, with_methods.SOLVER.MOMENTUM = methods, 0.0
    with_methods.SOLVER.TR.FACTOR, with_methods.SOLVER.TR.GAIN = 0.5, 1.0
    run_elsewhere(datasets, [(cfg, 0), (with_methods, 0)])
    stops = [
        (stopped_at(cfg, done, tmp_path / f"{done}", "DATALOADER.NUM_WORKERS", workers), done)
        for done, workers in STOPS.items()
    ]
    stops.append((stopped_at(with_methods, 4, tmp_path / "stopped_methods"), 4))
    run_elsewhere(datasets, stops)
    for done in STOPS:
        assert_same_checkpoint(
            tmp_path / f"{done}/model_final.pth", tmp_path / "whole/model_final.pth"
        )
    for name in ("model_final", "model_averaged"):
        assert_same_checkpoint(
            tmp_path / f"stopped_methods/{name}.pth", tmp_path / f"methods/{name}.pth"
        )
    # More weights were held after the stop than before.
    held = []
    for name in ("model_0000003", "model_final"):
        state = torch.load(tmp_path / f"methods/{name}.pth", weights_only=True)["model"]
        held.append(sum((v != FREE).sum().item() for k, v in state.items() if k.endswith(".held")))
    assert 0 < held[0] < held[1]


@pytest.fixture(scope="module")
def whole(tiny, mixed_scenes, tmp_path_factory):
    """Return the trainer of a whole run of 3 iterations."""
    return train(config_of(tiny, tmp_path_factory.mktemp("whole"), "SOLVER.MAX_ITER", 3))


@pytest.fixture
def our_log(caplog, monkeypatch):
    """Return what our modules log."""
    monkeypatch.setattr(logging.getLogger("tr_det"), "propagate", True)
    return caplog


def edit_checkpoint(cfg, done, edit):
    """Change the checkpoint that a stopped run goes on from."""
    path = Path(cfg.OUTPUT_DIR) / f"model_{done - 1:07d}.pth"
    saved = torch.load(path, weights_only=True)
    edit(saved)
    torch.save(saved, path)


def as_stock_v06_writes(saved):
    saved["trainer"] = {"iteration": saved["trainer"]["iteration"]}


def test_a_checkpoint_without_run_state_goes_on_with_a_warning(whole, tmp_path, our_log):
    cfg = stopped_at(whole.cfg, 2, tmp_path / "stopped")
    edit_checkpoint(cfg, 2, lambda saved: saved["trainer"]["hooks"].pop("RunState"))
    assert train(cfg).iter == 3
    assert "holds no seed and no loss normalizer" in our_log.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.IMS_PER_BATCH", 3, "had 1 processes and 2 images per iteration"),
        ("SOLVER.BASE_LR", 0.5, "goes on with its own: initial_lr 0.001 instead of 0.5"),
        ("SOLVER.WEIGHT_DECAY", 0.25, "goes on with its own: weight_decay 0.0001 instead of 0.25"),
    ],
)
def test_what_a_resumed_run_does_not_follow_is_reported(
    whole, tmp_path, our_log, key, value, message
):
    train(stopped_at(whole.cfg, 2, tmp_path / "stopped", key, value))
    assert message in our_log.text


def test_another_seed_in_the_config_does_not_change_a_resumed_run(whole, tmp_path):
    resumed = train(stopped_at(whole.cfg, 2, tmp_path / "stopped", "SEED", 12345))
    assert resumed.run_state.seed == whole.run_state.seed != 12345
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], value, rtol=0, atol=0)


def test_a_tr_scheduled_run_does_not_go_on_with_a_plain_optimizer(whole, tmp_path):
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER='SGD': the run to resume was TR-sched"):
        train(stopped_at(whole.cfg, 2, tmp_path / "stopped", "SOLVER.OPTIMIZER", "SGD"))


def test_a_run_does_not_go_on_without_its_optimizer(whole, tmp_path):
    cfg = stopped_at(whole.cfg, 2, tmp_path / "stopped")
    edit_checkpoint(cfg, 2, as_stock_v06_writes)
    with pytest.raises(ValueError, match="the checkpoint to resume holds no optimizer"):
        train(cfg)


def test_a_run_that_is_longer_than_its_config_is_not_resumed(whole, tmp_path):
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER=1: must be at least 2, which the run"):
        train(stopped_at(whole.cfg, 2, tmp_path / "stopped", "SOLVER.MAX_ITER", 1))


def test_a_new_run_is_not_resumed_from_an_earlier_one_in_its_folder(whole, tmp_path, our_log):
    cfg = stopped_at(whole.cfg, 2, tmp_path / "used")
    trainer = QuantTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.before_step = stop  # before its first checkpoint
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "what the earlier one has left is moved to" in our_log.text
    assert (tmp_path / "used/earlier_1/model_0000001.pth").is_file()
    assert not trainer.checkpointer.has_checkpoint()


def stop():
    raise KeyboardInterrupt


def test_the_loss_normalizer_is_as_before_or_absent():
    model = torch.nn.Identity()
    with outside_training(model):
        setattr(model, NORMALIZER, 5.0)
    assert not hasattr(model, NORMALIZER)
    setattr(model, NORMALIZER, 1.0)
    with outside_training(model):
        setattr(model, NORMALIZER, 5.0)
    assert getattr(model, NORMALIZER) == 1.0


def test_scripts_are_left_alone_on_a_gpu():
    read = torch._C._get_graph_executor_optimize
    with repeatable_scripts(torch.device("cpu")):
        assert not read()
    with repeatable_scripts(torch.device("cuda")):
        assert read()
