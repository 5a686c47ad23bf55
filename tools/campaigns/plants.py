"""What the campaign of planted code has in common: places and cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

IMAGE = "datasets/digit_scenes/val/000001.png"
"""A picture in a tool's working directory."""


class Place(NamedTuple):
    """Where an attempt plants, and what it can use.

    Attributes:
        folder: the tool's working directory.
        shared: configs, images, and finished runs in detector/ and classifier/.
        ran: the file that planted code makes.
    """

    folder: Path
    shared: Path
    ran: Path


class Case(NamedTuple):
    """Something planted, and the tool that meets it.

    Attributes:
        what: a description.
        plant: puts it into a place; returns the tool's call.
    """

    what: str
    plant: Callable[[Place], Callable[[], Any]]
