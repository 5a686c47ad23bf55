#!/usr/bin/env python
"""Measure the costs of quantization on this machine, beside those of other libraries.

    tools/benchmark.py                       all, on the GPU if there is one
    tools/benchmark.py fake-quant            one fake-quantizer, by tensor size
    tools/benchmark.py train-step            full precision, torch's fake-quantizers, tr_det's
    tools/benchmark.py quantizer-step        a step with each registered quantizer
    tools/benchmark.py optimizer-step        SGD and Adam, plain and TR-scheduled
    tools/benchmark.py exported              exported detectors, in ONNX Runtime and OpenVINO
    tools/benchmark.py exported-codes        what of their codes differs there; no times

Contestants take turns in one process; tables give medians and the median of ratios within a
turn. Writes NAME-DEVICE.md and NAME-DEVICE.json to output/benchmarks. See tools/benchmarks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from benchmarks import (
    exported,
    exported_codes,
    fake_quant,
    optimizer_step,
    quantizer_step,
    train_step,
)
from benchmarks.measure import Settings, machine
from benchmarks.report import write

BENCHMARKS = {
    "fake-quant": fake_quant,
    "train-step": train_step,
    "quantizer-step": quantizer_step,
    "optimizer-step": optimizer_step,
    "exported": exported,
    "exported-codes": exported_codes,
}


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {list(BENCHMARKS)}; default: all")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each (default 15)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, for a quick try")
    parser.add_argument("--output", type=Path, default=Path("output/benchmarks"))
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{unknown[0]!r}: must be one of {list(BENCHMARKS)}")
    if args.rounds < 1 or (args.threads is not None and args.threads < 1):
        parser.error("--rounds and --threads must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    if args.threads:
        torch.set_num_threads(args.threads)
    wanted = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    for name in args.names or BENCHMARKS:
        module = BENCHMARKS[name]
        device = getattr(module, "DEVICE", wanted)  # what is exported runs on one only
        settings = Settings(device, args.rounds, tiny=args.tiny)
        conditions = machine(settings)
        rows = module.rows(settings)
        print(write(args.output, f"{name}-{device}", module.TITLE, rows, conditions))
        for line in module.missing() if hasattr(module, "missing") else []:
            print(line)


if __name__ == "__main__":
    main()
