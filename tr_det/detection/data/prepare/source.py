"""What the readers of all formats return, and how they say what is broken."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tr_det.export.images import IMAGE_SUFFIXES

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What sources call their parts -> our word for it."""


class Box(NamedTuple):
    """One labelled object.

    Attributes:
        label: name of its class.
        left: edge, in the unit of its `Photo`; the others likewise.
        crowd: it is neither trained on nor scored (COCO's ``iscrowd``, VOC's ``difficult``).
    """

    label: str
    left: float
    top: float
    right: float
    bottom: float
    crowd: bool = False


class Photo(NamedTuple):
    """An image with its boxes, as its source has them.

    Attributes:
        path: of the image.
        boxes: in pixels, or with ``relative`` in shares of the image's width and height.
        split: "train", "val", "test", or "" where the source has none.
        size: width and height that the source states, pixels; None where it states none.
        relative: see boxes.
    """

    path: Path
    boxes: tuple[Box, ...]
    split: str = ""
    size: tuple[int, int] | None = None
    relative: bool = False


class Source(NamedTuple):
    """All that a reader has found.

    Attributes:
        photos: with boxes, or known to have none.
        classes: names, in their order.
        notes: what was left alone, a line each.
    """

    photos: list[Photo]
    classes: tuple[str, ...]
    notes: list[str]


class Faults:
    """Files, and entries of files, that cannot be used.

    Args:
        skip: whether they may be left out.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip, self.found = skip, []

    found: list[str]

    def add(self, path: Path, reason: object) -> None:
        """Note a file and what is wrong with it, or with an entry of it."""
        self.found.append(f"{path}: {reason}")

    def settle(self) -> str:
        """Return a line about what is left out, "" if nothing is.

        Raises:
            ValueError: there are faults, and they may not be left out.
        """
        if not self.found:
            return ""
        count = len(self.found)
        if not self.skip:
            more = f" (one of {count} faults)" if count > 1 else ""
            raise ValueError(f"{self.found[0]}{more}; --skip-broken leaves out what is broken")
        return f"{count} broken files or entries are left out, e.g. {self.found[0]}"


def read_text(file: Path) -> str:
    """Return the text of a file.

    Raises:
        ValueError: it is not UTF-8; names the file.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: must be a text in UTF-8") from None


class ImageFiles:
    """The images below a folder, by the name without suffix."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                self._by_stem[path.stem].append(path)

    def __len__(self) -> int:
        return sum(map(len, self._by_stem.values()))

    def find(self, name: str, near: Path, split: str = "", folders: tuple[str, ...] = ()) -> Path:
        """Return the image of a name without suffix.

        Args:
            name: of the file, without suffix.
            near: the file that speaks of it, by which one of several is chosen.
            split: of that file, by which one of several as near is chosen.
            folders: that it should be in, innermost last; an image of the name that is in others
                is found, too.

        Raises:
            ValueError: there is none, or several are as near.
        """
        found = self._by_stem.get(name, [])
        if not found:
            raise ValueError(f"there is no image {name}.jpg, .png or the like")
        found = [path for path in found if is_in(path, folders)] or found
        shared = [_shared_parts(path, near) for path in found]
        best = [path for path, count in zip(found, shared, strict=True) if count == max(shared)]
        if len(best) > 1:
            best = [path for path in best if split_of(path, self._root) == split] or best
        if len(best) > 1:
            raise ValueError(f"it may be of {best[0]} or of {best[1]}")
        return best[0]


def is_in(path: Path, folders: tuple[str, ...]) -> bool:
    """Return whether the innermost folders of a path are the given ones.

    >>> is_in(Path("a/b/1.jpg"), ("b",)), is_in(Path("a/b/1.jpg"), ("a",)), is_in(Path("1.jpg"), ())
    (True, False, True)
    """
    return path.parent.parts[len(path.parent.parts) - len(folders) :] == folders


def split_of(path: Path, root: Path) -> str:
    """Return the split that the names of a file's folders, or its own, tell; "" for none.

    >>> split_of(Path("a/valid/images/1.jpg"), Path("a")), split_of(Path("a/1.jpg"), Path("a"))
    ('val', '')
    >>> split_of(Path("a/instances_train.json"), Path("a"))
    'train'
    """
    parts = path.relative_to(root).with_suffix("").parts
    for part in reversed(parts):
        words = [part.lower(), *part.lower().replace("-", "_").split("_")]
        for word in (word.rstrip("0123456789") for word in words):
            if word in SPLIT_NAMES and (part != parts[-1] or path.suffix == ".json"):
                return SPLIT_NAMES[word]
    return ""


def merged(names: Iterable[str]) -> list[str]:
    """Return a note about names that several of a source's classes have; none without.

    >>> merged(["ant", "cat", "ant"])
    ['several classes are named ant: taken as one']
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    return [f"several classes are named {', '.join(twice)}: taken as one"] if twice else []


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the different labels in alphabetical order."""
    return tuple(sorted(set(labels)))


def _shared_parts(one: Path, other: Path) -> int:
    count = 0
    for a, b in zip(one.parent.parts, other.parent.parts, strict=False):
        if a != b:
            break
        count += 1
    return count
