"""What each process of test_two_processes.py does; a module, as spawned processes import it."""

import json
import multiprocessing
import os
import signal
from contextlib import suppress
from pathlib import Path

import torch
import train_net
from detectron2.modeling import build_model
from detectron2.utils import comm

from tests import tiny
from tr_det.core import quantized_layers
from tr_det.detection import QuantTrainer, calibrate
from tr_det.runtime import calibration
from tr_det.runtime.signals import Stopped, ended_by_signals, held


def train(cfg):
    torch.manual_seed(0)  # of the weights that a run begins with
    trainer = QuantTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    model = trainer.model.module
    metrics = trainer.optimizer.transition_metrics()
    tracker, average = saved_methods(trainer.optimizer)
    return {
        "start": trainer.start_iter,
        "parameters": {key: p.detach() for key, p in model.named_parameters()},
        "codes": {
            key: layer.weight_quantizer.codes(layer.weight)
            for key, layer in quantized_layers(model)
        },
        "tracks": tracker,
        "average": {key: average[key] for key, _ in model.named_parameters()},
        "controllers": [metrics.running, metrics.talr, metrics.rate],
        "normalizer": model.loss_normalizer,
    }


def stopped(cfg):
    """Train until a signal to the second process, in its first step, ends both; return the config.

    They end a step later.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR += "_stopped"
    cfg.SOLVER.CHECKPOINT_PERIOD = 100
    run_step = QuantTrainer.run_step

    def signalled(trainer):
        if trainer.iter == 0 and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        run_step(trainer)

    QuantTrainer.run_step = signalled
    with suppress(Stopped), ended_by_signals(), held():
        train(cfg)
    QuantTrainer.run_step = run_step
    return cfg


def saved_methods(optimizer):
    """Return the tracker's state and the average."""
    methods = optimizer.state_dict()["tr_det"]["methods"]
    return methods["tracker"], methods["weight_average"]


NORM = "backbone.bottom_up.res2.0.conv1.norm"


def evaluated_statistics(cfg, methods):
    """Return a norm's running mean before, within and after an evaluation, and its average."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = f"{cfg.OUTPUT_DIR}_evaluated", 2
    cfg.SOLVER.METHODS, cfg.DATASETS.TEST = methods, ("tiny_scenes_val",)
    seen = []

    class Watching(QuantTrainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            cls.mean = model.module.get_submodule(NORM).running_mean
            seen.append(cls.mean.clone())
            results = super().test(cfg, model, evaluators)
            seen.append(cls.mean.clone())
            return results

        @classmethod
        def build_test_loader(cls, cfg, name):
            seen.append(cls.mean.clone())
            return super().build_test_loader(cfg, name)

    trainer = Watching(cfg)
    trainer.train()
    if methods:
        seen.append(saved_methods(trainer.optimizer)[1][f"{NORM}.running_mean"])
    return seen


def norm_statistics(cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    calibrate(model, QuantTrainer.build_train_loader(cfg), 2)
    norm = model.backbone.bottom_up.res2[0].conv1.norm
    return [norm.running_mean, norm.running_var]


def main(args):
    """Train, stop and resume, calibrate, save the results, and make a mistake."""
    torch.set_num_threads(1)
    folder = Path(args.config_file).parent
    for name, json_file, images in json.loads((folder / "datasets.json").read_text()):
        tiny.register(name, json_file, images)
    cfg = train_net.load_config(args)
    found = {"start_method": multiprocessing.get_start_method(), "whole": train(cfg)}
    found["resumed"] = train(stopped(cfg))
    found["averaged"] = norm_statistics(cfg)
    calibration.average_statistics = lambda model: None
    found["own"] = norm_statistics(cfg)
    found["evaluated"] = evaluated_statistics(cfg, [])
    found["evaluated_average"] = evaluated_statistics(cfg, ["tracker", "weight_average decay=0.5"])
    torch.save(found, folder / f"rank{comm.get_rank()}.pth")
    comm.synchronize()
    raise ValueError("a mistake of\nthe user's")
