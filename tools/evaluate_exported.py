#!/usr/bin/env python
"""Evaluate an exported file as the trained model is evaluated: COCO's AP, or top-1 and top-5.

    tools/evaluate_exported.py model_qcdq.onnx --runtime openvino
    tools/evaluate_exported.py model_packed.safetensors DATASETS.TEST "('mine_val',)"

MODEL is a file of tools/export_model.py. Its config is in it; --config-file takes another one, or a
run's folder. ONNX files run in --runtime, others in torch. Results, and a detector's boxes, go to
MODEL.RUNTIME/; the time is of the network alone, without preprocessing and decoding.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tr_det.export.metadata import Metadata
from tr_det.export.runtimes import RUNTIMES, installed
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.files import write_json

if TYPE_CHECKING:
    from torch import nn

    from tr_det.export.networks import Timed

RESULTS = "evaluation.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--runtime", choices=list(RUNTIMES), help="default: what is installed")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--config-file", type=Path, help="YAML or a run's folder")
    parser.add_argument("--images", type=int, default=0, help="the first N only")
    parser.add_argument("--output", type=Path, help="folder; default: MODEL.RUNTIME")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE")
    args = parser.parse_intermixed_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with one_line_errors():
        evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    from tr_det.export.networks import read_metadata

    for flag in ("threads", "images"):
        if getattr(args, flag) < 0:
            raise ValueError(f"--{flag}={getattr(args, flag)}: must be at least 0")
    metadata = read_metadata(args.model)
    runtime = wanted_runtime(args)
    folder = args.output or args.model.with_suffix(f".{runtime}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output={folder}: must be a folder")
    evaluated = detector_results if metadata.task == "detection" else classifier_results
    with config_of(args.config_file, metadata) as config:
        results, network = evaluated(args, metadata, config, runtime, folder)
    record = {
        "file": str(args.model),
        "format": metadata.format,
        "runtime": runtime,
        "threads": args.threads,
        "images": network.images,
        "ms_per_image": network.milliseconds,
        "metrics": results,
    }
    write_json(folder / RESULTS, record)
    print(f"{summary(results)}  {network.milliseconds:.2f} ms per image, {runtime}, network alone")
    print(f"{folder / RESULTS}: the results")


def wanted_runtime(args: argparse.Namespace) -> str:
    """Return who runs the file."""
    if args.model.suffix != ".onnx":
        if args.runtime:
            raise ValueError(f"--runtime={args.runtime}: is for .onnx files; others run in torch")
        return "torch"
    there = installed()
    if args.runtime and args.runtime not in there:
        raise ValueError(f"--runtime={args.runtime}: is not installed; pip install -e '.[export]'")
    if not there:
        raise ValueError("--runtime: none is installed; pip install -e '.[export]'")
    return args.runtime or there[0]


@contextlib.contextmanager
def config_of(given: Path | None, metadata: Metadata) -> Iterator[Path]:
    """Yield a YAML file: the given one, that of a run's folder, or the exported file's own text."""
    if given is not None:
        yield given / "config.yaml" if given.is_dir() else given
        return
    if not metadata.config:
        raise ValueError("--config-file: must be given, as there is no config in the file")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(metadata.config, encoding="utf-8")
        yield config


def detector_results(
    args: argparse.Namespace, metadata: Metadata, config: Path, runtime: str, folder: Path
) -> tuple[dict[str, Any], Timed]:
    """Return COCO's results by test set, and the network with its times."""
    from detectron2.utils.logger import setup_logger

    from tr_det.detection.data.datasets import check_datasets
    from tr_det.detection.export import fresh_detector, load_config_for_cpu
    from tr_det.detection.exported import ExportedDetector, evaluate_exported
    from tr_det.export.networks import Timed, open_network

    setup_logger()
    cfg = load_config_for_cpu(config, args.opts)
    check_datasets(cfg, ("TEST",))
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST=(): must name a dataset")
    opened = open_network(args.model, metadata, lambda: fresh_detector(cfg), runtime, args.threads)
    network = Timed(opened)
    detector = ExportedDetector(network, metadata)
    return evaluate_exported(cfg, detector, folder, args.images), network


def classifier_results(
    args: argparse.Namespace, metadata: Metadata, config: Path, runtime: str, folder: Path
) -> tuple[dict[str, Any], Timed]:
    """Return accuracies and the network with its times."""
    from tr_det.classification.data.datasets import load_data
    from tr_det.classification.export import (
        evaluate_exported,
        fresh_classifier,
        load_config_for_cpu,
    )
    from tr_det.export.networks import Timed, open_network

    logging.getLogger("fvcore").setLevel(logging.WARNING)
    options = load_config_for_cpu(config, args.opts)
    data = load_data(options.data)

    def fresh() -> tuple[nn.Module, nn.Module]:
        model = fresh_classifier(options, data)
        return model, model

    network = Timed(open_network(args.model, metadata, fresh, runtime, args.threads))
    return evaluate_exported(options, data, network, args.images), network


def summary(results: dict[str, Any]) -> str:
    """Return the figures that matter most."""
    if "accuracy" in results:
        return f"top-1 {results['accuracy']:.2f}  top-5 {results['top5']:.2f}"
    found = [f"{name}: AP {r['bbox']['AP']:.2f}" for name, r in results.items() if r]
    return "  ".join(found) or "no detections"


if __name__ == "__main__":
    main()
