#!/usr/bin/env python
"""Export a trained quantized detector or classifier, and prove that the file computes the same.

    tools/export_model.py RUN --verify
    tools/export_model.py CONFIG.yaml --checkpoint FILE.pth --output model.onnx [KEY VALUE ...]

RUN is the folder of a run, or the demo's: of its config.yaml, and of what its last evaluation saw.
Of a CONFIG, MODEL.WEIGHTS (model.weights of a classifier) or --checkpoint names the weights.

    qcdq      ONNX, for any runtime with opset 21; OpenVINO executes it in integers
    integer   ONNX, for ONNX Runtime in integers
    packed    safetensors with the codes at their bits; loads into the torch model again
    torch     torch.export of the simulation in floats

Beside a detector in ONNX, MODEL.decode.onnx makes boxes of its outputs. --verify compares every
layer's codes on test images, in the model, a reference in integers and the runtimes; the result is
also in MODEL.proof.json. --report measures the files of all formats: sizes, operations, and times
over full precision in the same runtime (MODEL.report.md and .json). Exit status: 1 if the proof
fails, 2 for a mistake in what was asked for.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_files import find_run, is_classifier

from tr_det.export.metadata import FORMATS, Metadata
from tr_det.runtime.cli import one_line_errors
from tr_det.runtime.configs import parse
from tr_det.runtime.files import write_json

if TYPE_CHECKING:
    import numpy as np

    from tr_det.export.model import Exported
    from tr_det.export.subject import Subject


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="RUN_OR_CONFIG")
    parser.add_argument("--checkpoint", default="", metavar="FILE")
    parser.add_argument("--format", choices=FORMATS, default="qcdq")
    parser.add_argument("--output", type=Path, help="default: RUN/export/model_FORMAT.*")
    parser.add_argument("--verify", action="store_true", help="prove it on test images")
    parser.add_argument("--images", type=int, default=8, help="how many of them (default 8)")
    parser.add_argument("--report", action="store_true", help="measure sizes, BOPs and times")
    parser.add_argument(
        "--runtime",
        action="append",
        default=[],
        choices=("onnxruntime", "openvino"),
        help="to verify in; may be given twice; default: those that are installed",
    )
    parser.add_argument("--all-layers", action="store_true", help="list those without faults too")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE")
    args = parser.parse_intermixed_args(arguments)
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with one_line_errors():
        holds = export(args)
    if not holds:
        raise SystemExit(1)


def export(args: argparse.Namespace) -> bool:
    """Do what the command line asks for; return False if a proof has failed."""
    from tr_det.export import subject as subjects

    if args.images < 1:
        raise ValueError(f"--images={args.images}: must be at least 1")
    config, checkpoint = find_run(args.source, args.checkpoint)
    folder = config.parent if args.source.is_dir() else args.source
    output = args.output or default_output(folder, args.format, subjects.SUFFIXES)
    subjects.check_output(args.format, output)
    if not args.verify and (args.runtime or args.all_layers):
        raise ValueError(f"{'--runtime' if args.runtime else '--all-layers'}: needs --verify")
    runtimes = wanted_runtimes(args) if args.verify else []
    subject = make_subject(config, args.opts, checkpoint)
    # Before anything is written, as the data may not be there.
    images = list(subject.images(args.images)) if args.verify else []
    target = output.with_suffix(".proof.json")
    target.unlink(missing_ok=True)  # of an older file
    exported = subjects.write(subject, args.format, output)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")
    if exported is not None and subject.metadata.detector is not None:
        print(f"{subjects.decode_path(output)}: makes boxes of its outputs")
    if args.report:
        image = (images[0] if images else next(subject.images(1))).numpy()
        write_the_report(subject, image, exported, output)
    if not args.verify:
        return True
    from tr_det.export import table
    from tr_det.export.saturation import layers_at_risk, this_cpu

    cpu = this_cpu()
    if exported is not None:
        from tr_det.export.model import prove

        proof = prove(exported, (image.numpy() for image in images), runtimes)
        risks = layers_at_risk(exported.writer.graph)
        remedy = keys_without(risks, proof.bits, subject.metadata)
        print(table.proof_table(proof, risks, remedy, cpu, args.all_layers))
        record, failures = table.proof_record(proof, risks, remedy, cpu), proof.failures()
    else:
        from tr_det.export.readback import read_back

        found = read_back(subject, args.format, output, images)
        codes = f"{found.codes:,} codes of weights and " if found.codes else ""
        print(f"read back: {codes}outputs of {found.images} images compared")
        print("\n".join(table.verdict(found.failures)))
        failures = found.failures
        record = {**table.record(failures, found.images, cpu), "codes": found.codes}
    write_json(target, {"file": output.name, "format": args.format, **record})
    print(f"{target}: the proof")
    return not failures


def keys_without(
    risks: Mapping[str, int], bits: Mapping[str, tuple[int, int]], metadata: Metadata
) -> str:
    """Return the ``KEY VALUE`` pairs of a config without layers at risk, "" if there are none.

    They are for a training: narrower weights have other codes than those of this model.

    Args:
        risks: of `layers_at_risk`.
        bits: of the weights and inputs of all its quantized layers.
        metadata: with the config.
    """
    if not risks:
        return ""
    safe = min(risks.values())
    if metadata.task == "classification":  # all layers have the same bits
        return f"quant.bits W{safe}A{bits[next(iter(risks))][1]}"
    rules = parse(metadata.config)["MODEL"]["QUANT"]["RULES"]
    if len(risks) == len(bits) and not rules:
        return f"MODEL.QUANT.WEIGHT_BITS {safe}"
    rules += [f"{layer} weight_bits={most}" for layer, most in risks.items()]
    return f"MODEL.QUANT.RULES {shlex.quote(json.dumps(rules))}"


def write_the_report(
    subject: Subject, image: np.ndarray, exported: Exported | None, output: Path
) -> None:
    """Measure and write MODEL.report.json and .md."""
    from tr_det.export.report import make_report, write_report

    graph = None if exported is None else exported.writer.graph
    _, text = write_report(make_report(subject, image, graph), output.with_suffix(".report"))
    print(text.read_text())
    print(f"{text}: the report")


def default_output(source: Path, form: str, suffixes: dict[str, str]) -> Path:
    """Return where a run's export goes."""
    if not source.is_dir():
        raise ValueError("--output: must name the file to write, as a config has no folder")
    return source / "export" / f"model_{form}{suffixes[form]}"


def wanted_runtimes(args: argparse.Namespace) -> list[str]:
    """Return the runtimes to verify in."""
    if args.format not in ("qcdq", "integer"):
        if args.runtime:
            raise ValueError(f"--runtime={args.runtime[0]}: is for the formats of ONNX")
        return []
    from tr_det.export.model import RUNTIMES_OF, installed_runtimes

    there, known = installed_runtimes(args.format), RUNTIMES_OF[args.format]
    for name in args.runtime:
        if name not in known:
            raise ValueError(
                f"--runtime={name}: must be one of {list(known)} for --format {args.format}"
            )
        if name not in there:
            raise ValueError(f"--runtime={name}: is not installed; pip install -e '.[export]'")
    if not there:
        raise ValueError(
            f"--verify: needs one of {list(known)}, none is installed; pip install -e '.[export]'"
        )
    return args.runtime or there


def make_subject(config: Path, opts: Sequence[str], checkpoint: str) -> Subject:
    """Return the detector or classifier of a config."""
    if is_classifier(config):
        from tr_det.classification.export import classifier_subject

        return classifier_subject(config, opts, checkpoint)
    from tr_det.detection.export import detector_subject

    return detector_subject(config, opts, checkpoint)


if __name__ == "__main__":
    main()
