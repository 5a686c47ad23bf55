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
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_files import Side, config_of, open_exported, read_side, wanted_runtime

from tr_det.export.metadata import Metadata
from tr_det.export.networks import Timed
from tr_det.export.runtimes import RUNTIMES
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.files import require_writable, write_json

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
    parser.add_argument("--trust", action="store_true", help="run a .pt2, which may hold any code")
    parser.add_argument("--images", type=int, default=0, help="the first N only")
    parser.add_argument("--output", type=Path, help="folder; default: MODEL.RUNTIME")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE")
    args = parser.parse_intermixed_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with one_line_errors():
        evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    for flag in ("threads", "images"):
        if getattr(args, flag) < 0:
            raise ValueError(f"--{flag}={getattr(args, flag)}: must be at least 0")
    runtime = wanted_runtime(args.model, args.runtime)
    folder = args.output or args.model.with_suffix(f".{runtime}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output={folder}: must be a folder")
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    opened, metadata = open_exported(
        args.model, runtime, args.threads, args.config_file, args.opts, trust=args.trust
    )
    with config_of(args.config_file, metadata) as config:
        side = read_side(config, args.opts, task=metadata.task)
    require_writable(folder / RESULTS)
    network = Timed(opened)
    if metadata.task == "detection":
        results = detector_results(side, metadata, network, folder, args.images)
    else:
        results = classifier_results(side, metadata, network, args.images)
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


def detector_results(
    side: Side, metadata: Metadata, network: Timed, folder: Path, limit: int
) -> dict[str, Any]:
    """Return COCO's results by test set."""
    from detectron2.utils.logger import setup_logger

    from tr_det.detection.data.datasets import check_datasets
    from tr_det.detection.exported import ExportedDetector, evaluate_exported

    setup_logger()
    check_datasets(side.config, ("TEST",))
    if not side.config.DATASETS.TEST:
        raise ValueError("DATASETS.TEST=(): must name a dataset")
    detector = ExportedDetector(network, metadata)
    return evaluate_exported(side.config, detector, folder, limit)


def classifier_results(
    side: Side, metadata: Metadata, network: Timed, limit: int
) -> dict[str, float]:
    """Return accuracies."""
    from tr_det.classification.export import evaluate_exported

    return evaluate_exported(side.config, side.data, metadata, network, limit)


def summary(results: dict[str, Any]) -> str:
    """Return the figures that matter most."""
    if "accuracy" in results:
        return f"top-1 {results['accuracy']:.2f}  top-5 {results['top5']:.2f}"
    found = [f"{name}: AP {r['bbox']['AP']:.2f}" for name, r in results.items() if r]
    return "  ".join(found) or "no detections"


if __name__ == "__main__":
    main()
