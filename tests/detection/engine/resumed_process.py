"""What a new process of test_resume.py does."""

import multiprocessing
import random

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


def main(_, datasets, runs):
    """Train by configs; a dataset is (name, JSON file, images), and a run (path, start)."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loaders' workers
    for dataset in datasets:
        tiny.register(*dataset)
    for config, start in runs:
        assert train(load_config(config)).start_iter == start
