"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: str | Path, text: str) -> None:
    """Write a file so that who reads meanwhile, or after a crash, never finds a part of it."""
    part = Path(f"{path}.part")
    part.write_text(text)
    os.replace(part, path)
