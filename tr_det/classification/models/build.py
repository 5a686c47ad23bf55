"""Builders of the network and the loss that a config names."""

from __future__ import annotations

import logging

import torch
from torch import nn

from tr_det.classification.config.keys import LIBRARY, ClassifierConfig, under_quant_key
from tr_det.classification.data.images import Data
from tr_det.classification.engine.losses import Distributional
from tr_det.classification.models.registry import build_model, quantize_network
from tr_det.core import ConfigError
from tr_det.core.errors import check
from tr_det.runtime.checkpoints import StrictCheckpointer
from tr_det.runtime.processes import processes

_log = logging.getLogger(__name__)


def build_network(config: ClassifierConfig, data: Data, published: bool) -> nn.Module:
    """Return the model on its device, quantized if the config says so.

    Args:
        config: the run.
        data: of the run.
        published: whether to load the library's weights where the config names them.
    """
    device = _device(config)
    torch.manual_seed(config.run.seed)
    options = dict(config.model.options)
    for key, value in (("num_classes", data.num_classes), ("in_channels", data.channels)):
        given = options.pop(key, value)
        check(f"model.options.{key}", given, given == value, f"{value}, as the data has it")
    try:
        model = build_model(
            config.model.name,
            data.num_classes,
            data.channels,
            pretrained=published and config.model.weights == LIBRARY,
            new_last_layer=config.model.new_last_layer,
            **options,
        )
    except ConfigError as error:
        raise error.renamed(f"model.{error.key}") from None
    _check_image_size(config, data, model)
    if config.quant.enabled:
        quant = config.quant.for_core(config.learn_weight_scale)
        try:
            report = quantize_network(model, config.model.name, quant)
        except ConfigError as error:
            raise under_quant_key(error) from None
        _log.info("%s", report.table().splitlines()[-1])
    return model.to(device)


def _check_image_size(config: ClassifierConfig, data: Data, model: nn.Module) -> None:
    """Raise ConfigError if a transformer is for images of another size."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size:
        given, ours = config.data.image_size, data.image_size
        allowed = (
            f"{max(size)}, the pixels that {config.model.name} takes, or with model.options "
            f"{{img_size: {ours}}}"
        )
        check("data.image_size", given, max(size) == ours, allowed)


def build_loss(config: ClassifierConfig, data: Data, model: nn.Module) -> nn.Module | None:
    """Return the distributional loss with its teacher, or None for the trainer's own."""
    solver = config.solver
    if solver.loss != "distributional":
        return None
    from_library = solver.teacher_weights == LIBRARY
    try:
        teacher = build_model(
            solver.teacher, data.num_classes, data.channels, pretrained=from_library
        )
    except ConfigError as error:
        key = {"name": "teacher", "weights": "teacher_weights"}[error.key]
        raise error.renamed(f"solver.{key}") from None
    if not from_library:
        StrictCheckpointer(teacher).load(solver.teacher_weights, checkpointables=[])
    return Distributional(teacher.to(next(model.parameters()).device))


def _device(config: ClassifierConfig) -> torch.device:
    if config.run.device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())
    gpus = torch.cuda.device_count()
    there = ["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{n}" for n in range(gpus))]
    if gpus and processes() > 1:  # they have joined as processes with a GPU each
        there = ["auto", "cuda"]
    allowed = f"one of {there}, what this machine has"
    check("run.device", config.run.device, config.run.device in there, allowed)
    return torch.device(config.run.device)
