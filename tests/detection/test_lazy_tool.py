"""Detectron2's own lazyconfig_train_net.py trains, resumes and evaluates our LazyConfig."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/COCO-Detection/retinanet.py"

STEM = "backbone.bottom_up.stem.conv1.weight"
SMALL = """
from detectron2.config import LazyConfig

cfg = LazyConfig.load({config!r})
model, dataloader = cfg.model, cfg.dataloader
optimizer, lr_multiplier, train = cfg.optimizer, cfg.lr_multiplier, cfg.train

model.num_classes = 10
model.backbone.bottom_up.stages.depth = 18
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = "BN"
dataloader.register = {register!r}
dataloader.train.dataset.names, dataloader.test.dataset.names = "lazy_train", "lazy_val"
dataloader.train.mapper.augmentations[0].short_edge_length = (64,)
dataloader.test.mapper.augmentations[0].short_edge_length = 64
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.evaluator.output_dir = train.output_dir = {output!r}
optimizer.log_period = train.log_period = 1
optimizer.methods = ["tracker", "weight_average decay=0.9", "bn_reestimation batches=1"]
train.init_checkpoint, train.device, train.max_iter = "", "cpu", 2
train.checkpointer.period = 2
"""


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def registered(scenes):
    folder = scenes / "digit_scenes"
    return [
        f"lazy_{split} {folder}/annotations/instances_{split}.json {folder}/{split}"
        for split in ("train", "val")
    ]


@pytest.fixture
def run(tiny, scenes, tmp_path, monkeypatch):
    """Return ``run(*arguments)``, which runs the tool in this process."""
    monkeypatch.setattr("logging.raiseExceptions", False)  # handlers of earlier tests are closed
    script = load(
        load(Path(__file__).with_name("upstream_tools.py")).tool("lazyconfig_train_net.py")
    )
    config = tmp_path / "small.py"
    config.write_text(
        SMALL.format(config=str(CONFIG), register=registered(scenes), output=str(tmp_path))
    )

    def call(*arguments):
        return script.main(
            default_argument_parser().parse_args(["--config-file", str(config), *arguments])
        )

    return call


def groups(path):
    saved = torch.load(path, weights_only=True)
    return [g for g in saved["trainer"]["optimizer"]["param_groups"] if "talr" in g]


def test_it_trains_resumes_and_evaluates(run, tmp_path, capsys):
    run()
    first = groups(tmp_path / "model_final.pth")
    assert len(first) == 35  # all convolutions but the first and the last ones
    assert {group["tr_updates"] for group in first} == {2}
    run("--resume", "train.max_iter=4")
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 3
    resumed = groups(tmp_path / "model_final.pth")
    # The controllers have gone on, they have not started again.
    assert {group["tr_updates"] for group in resumed} == {4}
    assert {float(group["running_tr"]) for group in resumed} != {0.0}
    # AP and the TR curves are in metrics.json, with no hook of ours.
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    names = {"tr/running", "tr/talr", "tr/oscillating"}
    assert [line["iteration"] for line in lines if names <= set(line)] == [0, 1, 2, 3]
    assert [line["iteration"] for line in lines if "bbox/AP" in line] == [2, 4]  # after training
    # The average has been evaluated, and kept.
    average = torch.load(tmp_path / "model_averaged.pth", weights_only=True)["model"]
    assert not torch.equal(average[STEM], saved["model"][STEM])
    evaluated = (tmp_path / "coco_instances_results.json").read_text()
    capsys.readouterr()
    run("--eval-only", f"train.init_checkpoint={tmp_path / 'model_averaged.pth'}")
    assert "'AP'" in capsys.readouterr().out
    assert (tmp_path / "coco_instances_results.json").read_text() == evaluated
