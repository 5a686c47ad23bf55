"""Detectron2's own train_net.py and plain_train_net.py on our YAML configs, unmodified.

    DETECTRON2_ENV_MODULE=tr_det.detection.env python /path/to/detectron2/tools/train_net.py ...

The variable is Detectron2's one injection point: `setup_environment` runs while ``detectron2`` is
imported, so what follows is in place before any script has read a name:

  * our keys are among the defaults of ``get_cfg``;
  * the datasets of ``DATASETS.REGISTER`` are registered when a config is frozen, as all tools do;
  * what is in configs and pickles is not run when they are read;
  * backbones, ``QuantRetinaNet`` and the embedded datasets are registered;
  * ``build_optimizer`` is ours, wherever Detectron2 has it by name;
  * ``build_model`` follows ``MODEL.QUANT`` and checks the config (`modeling.build`);
  * evaluations use the model that methods make for them, e.g. the average of its weights;
  * a run that starts from another one's checkpoint starts at iteration 0 (plain_train_net.py takes
    that of the checkpoint);
  * on v0.6 ``DefaultTrainer`` saves its optimizer, as upstream has it since.

What only tools/train_net.py has: strict checkpoints, the check of annotation files, calibration of
an unquantized checkpoint in ``--eval-only``, exact resume, the folder's lock, an end with a
checkpoint on a signal, and processes without GPU.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any, BinaryIO

_OPTIMIZER_PLACES = ("detectron2.solver.build", "detectron2.solver", "detectron2.engine.defaults")
PICKLE_PLACES = ("detectron2.checkpoint.detection_checkpoint", "detectron2.data.build")


def setup_environment() -> None:
    """Put tr_det into Detectron2; a second call changes nothing."""
    # Here, because Detectron2 is being imported and these modules import from it.
    from detectron2.config import defaults

    from tr_det.detection.config.keys import add_tr_det_config

    if "QUANT" in defaults._C.MODEL:
        return
    add_tr_det_config(defaults._C)

    import tr_det.detection  # noqa: F401  registers backbones, architecture, datasets
    from tr_det.detection.solver.methods import evaluate_through_methods
    from tr_det.detection.solver.optimizers import build_optimizer

    _read_configs_without_running_them()
    _register_datasets_of_frozen_configs()
    _unpickle_arrays_only()
    _replace("build_optimizer", _OPTIMIZER_PLACES, build_optimizer)
    evaluate_through_methods()
    _start_at_iteration_0()
    _save_optimizer_on_v06()


def _replace(name: str, places: tuple[str, ...], function: Any) -> None:
    for place in places:
        setattr(importlib.import_module(place), name, function)


def _read_configs_without_running_them() -> None:
    """Let ``CfgNode.merge_from_file``, which would run code by default, read what our tools do."""
    from detectron2.config import CfgNode

    from tr_det.detection.config.reading import read_tree

    def load_yaml_with_base(cls: Any, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        return read_tree(filename)

    CfgNode.load_yaml_with_base = classmethod(load_yaml_with_base)


def _register_datasets_of_frozen_configs() -> None:
    """Follow ``DATASETS.REGISTER`` where a config is complete and nothing has read it yet."""
    from detectron2.config import CfgNode

    from tr_det.detection.data.register import follow_register

    inner = CfgNode.freeze

    def freeze(self: Any) -> None:
        if "REGISTER" in self.get("DATASETS", ()):
            follow_register(self)
        inner(self)

    CfgNode.freeze = freeze


def _unpickle_arrays_only() -> None:
    """Let Detectron2 read weights of model zoos, and proposals, as our tools read weights."""
    from tr_det.detection.checkpoint.pickled import read_arrays

    def load(file: BinaryIO, **options: Any) -> Any:
        return read_arrays(file)

    _replace("pickle", PICKLE_PLACES, SimpleNamespace(load=load))


def _start_at_iteration_0() -> None:
    """Take no iteration from a checkpoint that a run only starts from."""
    from detectron2.checkpoint import DetectionCheckpointer

    inner = DetectionCheckpointer.resume_or_load

    def resume_or_load(self: Any, path: str, *, resume: bool = True) -> dict[str, Any]:
        resumes = resume and self.has_checkpoint()
        loaded: dict[str, Any] = inner(self, path, resume=resume)
        return loaded if resumes else {k: v for k, v in loaded.items() if k != "iteration"}

    DetectionCheckpointer.resume_or_load = resume_or_load


def _save_optimizer_on_v06() -> None:
    """Give v0.6's DefaultTrainer the optimizer in its state, without which no TR run resumes."""
    from detectron2.engine import DefaultTrainer, TrainerBase

    if DefaultTrainer.state_dict is not TrainerBase.state_dict:
        return  # upstream has it since November 2021

    def state_dict(self: Any) -> dict[str, Any]:
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state)
        self._trainer.load_state_dict(state["_trainer"])

    DefaultTrainer.state_dict, DefaultTrainer.load_state_dict = state_dict, load_state_dict
