"""Runs in a process of their own: ``resumed_process.py JSON``, written by test_resume.py."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances

from tr_det.detection import QuantTrainer, add_tr_det_config


class NoisyTrainer(QuantTrainer):
    """Its model draws from each random state of the process, in training and evaluation."""

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        model.head.cls_score.register_forward_pre_hook(_add_noise)
        return model


def _add_noise(_, inputs):
    noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
    return (inputs[0] * (1 + noise / 100),)


def train(cfg):
    trainer = NoisyTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer


def main():
    torch.set_num_threads(1)
    task = json.loads(Path(sys.argv[1]).read_text())
    for name, json_file, images in task["datasets"]:
        register_coco_instances(name, {}, json_file, images)
    for config in task["configs"]:
        cfg = get_cfg()
        add_tr_det_config(cfg)
        cfg.merge_from_file(config)
        assert train(cfg).start_iter == task["start_iters"][config]


if __name__ == "__main__":
    main()
