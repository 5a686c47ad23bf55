"""What the export's tools share: runs, configs, checkpoints and exported files of either side.

Nothing is imported before it is needed: an ONNX file is opened without torch and Detectron2.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tr_det.export.metadata import Metadata
from tr_det.export.networks import SUFFIXES, Network, TorchNetwork, open_file, output_names
from tr_det.export.runtimes import installed
from tr_det.runtime.cli import require

if TYPE_CHECKING:
    from torch import nn

CONFIG = "config.yaml"
SECTIONS = {"model", "quant", "data", "solver", "tr", "run"}
"""Of a classifier's config; a detector's are written in capitals."""


class Side(NamedTuple):
    """A config, read, with what its side does with it.

    Attributes:
        config: Detectron2's of a detector, a ``ClassifierConfig``.
        data: images of a classifier; None of a detector.
        fresh: makes a model without the trained weights, and its part that takes one tensor.
        load: loads a checkpoint into the model.
        describe: returns the metadata of the model.
    """

    config: Any
    data: Any
    fresh: Callable[[], tuple[nn.Module, nn.Module]]
    load: Callable[[nn.Module, str], object]
    describe: Callable[[nn.Module], Metadata]


def read_side(config: Path, opts: Sequence[str] = (), device: str = "cpu", task: str = "") -> Side:
    """Read a config of either side.

    Args:
        config: a YAML file.
        opts: ``KEY VALUE`` pairs over it.
        device: where the model is made.
        task: that the config must be for; "" for any.

    Raises:
        ValueError: what is wrong with the config, or its data.
    """
    found = "classification" if is_classifier(config) else "detection"
    if task and found != task:
        raise ValueError(f"--config-file={config}: is for {found}; must be for {task}")
    return (_classifier if found == "classification" else _detector)(config, opts, device)


def _detector(path: Path, opts: Sequence[str], device: str) -> Side:
    require(path, "detectron2")
    from tr_det.detection import QuantCheckpointer
    from tr_det.detection.config.reading import load_config_for_cpu
    from tr_det.detection.export import detector_metadata, fresh_detector

    cfg = load_config_for_cpu(path, opts)
    cfg.MODEL.DEVICE = device
    return Side(
        config=cfg,
        data=None,
        fresh=lambda: fresh_detector(cfg),
        load=lambda model, file: QuantCheckpointer(model).load(file),
        describe=lambda model: detector_metadata(cfg, model),
    )


def _classifier(path: Path, opts: Sequence[str], device: str) -> Side:
    from tr_det.classification.data.datasets import load_data
    from tr_det.classification.export import (
        classifier_metadata,
        fresh_classifier,
        load_config_for_cpu,
    )
    from tr_det.runtime.checkpoints import StrictCheckpointer

    config = load_config_for_cpu(path, opts)
    config = replace(config, run=replace(config.run, device=device))
    data = load_data(config.data)

    def fresh() -> tuple[nn.Module, nn.Module]:
        model = fresh_classifier(config, data)
        return model, model

    return Side(
        config=config,
        data=data,
        fresh=fresh,
        load=lambda model, file: StrictCheckpointer(model).load(file, checkpointables=[]),
        describe=lambda _: classifier_metadata(config, data),
    )


def open_exported(
    path: Path,
    runtime: str,
    threads: int = 0,
    config: Path | None = None,
    opts: Sequence[str] = (),
    *,
    trust: bool = False,
) -> tuple[Network, Metadata]:
    """Load a file of tools/export_model.py; return what runs it, and what it says about itself.

    Args:
        path: of the file.
        runtime: of `wanted_runtime`.
        threads: 0 for all cores.
        config: a YAML file or a run's folder that a packed file's model is made by; None: the text
            in the file.
        opts: ``KEY VALUE`` pairs over it.
        trust: whether a program of torch.export, which may hold any code, is run.
    """

    def fresh(metadata: Metadata) -> tuple[nn.Module, nn.Module]:
        with config_of(config, metadata) as file:
            return read_side(file, opts, task=metadata.task).fresh()

    if path.suffix == ".pt2" and not trust:
        raise ValueError(f"{path}: a program, and may hold any code; to run it, add --trust")
    if path.suffix in SUFFIXES and path.suffix != ".onnx":
        require(path, "torch", "fvcore")
    return open_file(path, fresh, runtime, threads)


def open_checkpoint(
    weights: str, config: Path, threads: int = 0, device: str = "cpu"
) -> tuple[Network, Metadata]:
    """Load a checkpoint of either side; return what runs it, and what it has to be known of it.

    Args:
        weights: path of the checkpoint.
        config: YAML of the run.
        threads: 0 for all cores.
        device: where it runs.
    """
    import torch

    from tr_det.export.subject import require_scales

    if threads:
        torch.set_num_threads(threads)
    side = read_side(config, device=device)
    model, net = side.fresh()
    side.load(model, weights)
    require_scales(net, weights)
    metadata = side.describe(model)
    return TorchNetwork(net, output_names(metadata), device), metadata


def wanted_runtime(model: Path, runtime: str | None) -> str:
    """Return who runs a file: the wanted runtime, the first that is installed, or "torch"."""
    if model.suffix != ".onnx":
        if runtime:
            raise ValueError(f"--runtime={runtime}: is for .onnx files; {model} runs in torch")
        return "torch"
    there = installed()
    if runtime and runtime not in there:
        raise ValueError(f"--runtime={runtime}: is not installed; pip install {runtime}")
    if not there:
        raise ValueError("--runtime: none is installed; pip install onnxruntime")
    return runtime or there[0]


@contextlib.contextmanager
def config_of(given: Path | None, metadata: Metadata) -> Iterator[Path]:
    """Yield a YAML file: the given one, that of a run's folder, or the exported file's own text."""
    if given is not None:
        yield given / CONFIG if given.is_dir() else given
        return
    if not metadata.config:
        raise ValueError("--config-file: must be given, as there is no config in the file")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / CONFIG
        config.write_text(metadata.config, encoding="utf-8")
        yield config


def find_run(source: Path, checkpoint: str = "") -> tuple[Path, str]:
    """Return the config and the checkpoint ("": the config names it) of a run or a config.

    The demo's folder stands for its last run's.
    """
    from tr_det.runtime.run_folder import evaluated_checkpoint, trained_folder

    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if not source.is_dir():
        return source, checkpoint
    source = trained_folder(source)
    config = source / CONFIG
    if not config.is_file():
        raise ValueError(f"{source}: not the folder of a run, it has no {CONFIG}")
    checkpoint = checkpoint or evaluated_checkpoint(source)
    if not checkpoint:
        raise ValueError(f"{source}: has no checkpoint; train first, or name one by --checkpoint")
    return config, checkpoint


def is_classifier(config: Path) -> bool:
    """Return whether a YAML file, or else the first file with keys that it builds on, is one's.

    One that cannot be read is not, and is left to who reads it next.
    """
    from tr_det.runtime.configs import config_files

    if config.suffix == ".py":
        return False
    with contextlib.suppress(OSError, ValueError):
        for _, tree in config_files(config):
            if tree:
                return bool(SECTIONS & tree.keys())
    return False
