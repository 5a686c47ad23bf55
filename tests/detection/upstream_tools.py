"""Detectron2's own training scripts, unmodified; loaded by path, as tests are not packages.

They are not in its wheel. ``DETECTRON2_CHECKOUT`` names a folder with a checkout of the installed
version; without it, stand-ins that make the same calls take their place.
"""

import os
from pathlib import Path


def tool(name):
    """Return the path of one of Detectron2's tools, or of its stand-in."""
    checkout = os.environ.get("DETECTRON2_CHECKOUT")
    folder = Path(checkout, "tools") if checkout else Path(__file__).with_name("stand_ins")
    return folder / name
