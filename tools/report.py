#!/usr/bin/env python
"""Write the page of a run or of a study: one HTML file with tables, curves, and detections.

    tools/report.py RUN                    of train_net.py, train_classifier.py or demo.sh
    tools/report.py RUN --baseline OTHER   beside another run
    tools/report.py STUDY                  of run_study.py

The page is report.html in the folder, or --output. It needs nothing but itself: it can be opened
from disk, attached, or put on any server. A run may still be going on.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from tr_det.runtime.cli import one_line_errors
from tr_det.study.page.writing import write_page


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="RUN_OR_STUDY")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (FOLDER/report.html)")
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="what a run is compared with")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # Detectron2's
    with one_line_errors():
        path = write_page(args.folder, args.output, args.baseline)
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
