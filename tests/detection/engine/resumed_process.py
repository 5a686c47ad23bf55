"""Runs in a process of their own: ``resumed_process.py JSON``, written by test_resume.py."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch

from tests import tiny
from tr_det.detection import QuantTrainer
from tr_det.detection.config.reading import load_config


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
    for dataset in task["datasets"]:
        tiny.register(*dataset)
    for config, start in task["runs"]:
        assert train(load_config(config)).start_iter == start


if __name__ == "__main__":
    main()
