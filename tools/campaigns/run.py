#!/usr/bin/env python
"""Try to break runs and tools: kills, full disks, fuzzed and hostile files.

    python tools/campaigns/run.py kills          SIGKILL at random and at chosen moments
    python tools/campaigns/run.py studies        SIGKILL of a study at random moments
    python tools/campaigns/run.py nodes          SIGKILL of one of two nodes of torchrun
    python tools/campaigns/run.py configs        fuzzed YAML files and KEY VALUE pairs
    python tools/campaigns/run.py annotations    fuzzed COCO files
    python tools/campaigns/run.py checkpoints    damaged and edited checkpoints
    python tools/campaigns/run.py planted        code in YAML, pickles and the kernels' cache
    python tools/campaigns/run.py disk           files that cannot be written to their end

Attempts follow from --seed and their number; --only repeats one and keeps its folder. Writes
NAME.json to --output with every attempt, and prints a summary. Exit status: 1 if an attempt broke
the campaign's promise. Linux only. See tr_det/docs/reliability.md.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

NAMES = ("kills", "studies", "nodes", "configs", "annotations", "checkpoints", "planted", "disk")
TOOLS = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run a campaign."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--attempts", type=int, help="default: the campaign's own")
    parser.add_argument("--minutes", type=float, help="no attempt begins after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--only", type=int, help="the number of a single attempt")
    parser.add_argument("--output", type=Path, default=Path("output/campaigns"))
    args = parser.parse_args(arguments)
    # Before torch and Detectron2 are imported, by this process and by what it starts.
    os.environ.update(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    os.environ.pop("DETECTRON2_DATASETS", None)
    warnings.simplefilter("ignore")
    sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]
    from campaigns.attempts import Settings, run

    campaign = importlib.import_module(f"campaigns.{args.name}")
    numbers = range(campaign.ATTEMPTS if args.attempts is None else args.attempts)
    minutes = campaign.MINUTES if args.minutes is None else args.minutes
    if args.only is not None:
        numbers = range(args.only, args.only + 1)
    work = Path(tempfile.mkdtemp(prefix=f"tr_det-{args.name}-"))
    settings = Settings(
        numbers=numbers,
        seconds=60 * minutes,
        seed=args.seed,
        jobs=max(1, min(args.jobs, len(numbers))),
        output=args.output.resolve(),
        work=work,
        keep=args.only is not None,
    )
    broken = run(args.name, campaign, settings, partial(print, flush=True))
    if settings.keep:
        print(f"files: {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
