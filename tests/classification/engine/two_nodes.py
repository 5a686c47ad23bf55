"""Run by two torchruns in a test: the tool, whose run is then resumed from a checkpoint."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path

import torch
import torch.distributed as dist
import train_classifier

from tr_det.classification.engine.run import run
from tr_det.classification.engine.trainer import ClassifierTrainer

plain, step = ClassifierTrainer.train, ClassifierTrainer._step


def step_until_lost(trainer, *args):
    """Make a step, or kill this process and its agent: the node is lost."""
    if trainer.iteration == int(os.environ.get("LOST_AFTER", -1)):
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, *args)


def train_and_compare(trainer):
    result = plain(trainer)
    mine = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    first = mine.clone()
    dist.broadcast(first, 0)
    assert torch.equal(mine, first)
    return result


def run_and_resume(config, resume):
    results = run(config, resume)
    if dist.get_rank() == 0:
        shutil.copytree(config.run.output_dir, "stopped")
        Path("stopped/model_final.pth").unlink()
        Path("stopped/last_checkpoint").write_text("model_0000002.pth")
    dist.barrier()
    folder = dataclasses.replace(config.run, output_dir="stopped")
    run(dataclasses.replace(config, run=folder), resume=True)
    return results


ClassifierTrainer.train, ClassifierTrainer._step = train_and_compare, step_until_lost
train_classifier.run = run_and_resume
train_classifier.main()
