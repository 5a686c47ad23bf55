#!/usr/bin/env python
"""Detect objects in images, folders, animations and videos with an exported file or a checkpoint.

    tools/predict.py model.onnx a.jpg folder/ clip.mp4 --output DIR
    tools/predict.py RUN_FOLDER folder/
    tools/predict.py model_final.pth a.jpg --config-file config.yaml

MODEL is a detector or a classifier: a file of tools/export_model.py (.onnx, .safetensors, .pt2), a
run's folder, or a checkpoint (.pth) with config.yaml beside it. --config-file names another config.

Writes pictures with boxes, and predictions.json in the form of COCO's results. Its image_id is the
number in the file's name if all inputs are images named by different numbers, as COCO's are;
otherwise images and frames are counted from 0. Each entry has the file's name, and of a file with
several frames the frame's number. Of a classifier there are the likeliest classes instead.

An ONNX file needs NumPy, Pillow and onnxruntime or openvino; other models need the installation
that trained them, and of a classifier, but for .pt2, its data set. A video needs PyAV as well.
Exit status 1: some inputs could not be read; they are named, and the others are done.
"""

from __future__ import annotations

import argparse
import colorsys
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it need not be installed

from model_files import (
    CONFIG,
    find_run,
    open_checkpoint,
    open_exported,
    wanted_runtime,
)
from PIL import Image, ImageDraw, ImageFont

from tr_det.export.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, frames, is_sequence
from tr_det.export.metadata import Metadata
from tr_det.export.networks import SUFFIXES, Network
from tr_det.export.predictor import Classification, Detections, Predictor
from tr_det.export.runtimes import RUNTIMES
from tr_det.runtime.cli import one_line_errors, require
from tr_det.runtime.files import require_writable, write_text, written_aside

BEST = 5  # classes of an image that predictions.json lists
LEGIBLE = 480  # px; smaller pictures are enlarged, so that their labels can be read
FONT_SIZE = 14  # px, in a picture of LEGIBLE


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and predict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("inputs", type=Path, nargs="+", help="images, videos, folders of them")
    parser.add_argument("--runtime", choices=list(RUNTIMES), help="default: what is installed")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--score", type=float, default=0.5, help="of boxes (default 0.5)")
    parser.add_argument("--output", type=Path, default=Path("output/predictions"), help="folder")
    parser.add_argument("--no-pictures", action="store_true", help="write only the JSON file")
    parser.add_argument("--json", type=Path, help="default: predictions.json in the output folder")
    parser.add_argument("--config-file", type=Path, help="of a .pth or .safetensors file")
    parser.add_argument("--trust", action="store_true", help="run a .pt2, which may hold any code")
    args = parser.parse_args(arguments)
    with one_line_errors():
        failures = predict(args)
    if failures:
        raise SystemExit(1)


def predict(args: argparse.Namespace) -> int:
    """Do what the command line asks for; return how many inputs could not be read."""
    if not 0 <= args.score <= 1:
        raise ValueError(f"--score={args.score}: must be from 0 to 1")
    if args.threads < 0:
        raise ValueError(f"--threads={args.threads}: must be at least 0")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output={args.output}: must be a folder")
    if args.json and args.json.is_dir():
        raise ValueError(f"--json={args.json}: must be a file")
    files = input_files(args.inputs, None if args.no_pictures else args.output)
    predictor, pictures, by_number = open_model(args), Pictures(args.output), are_numbered(files)
    target = args.json or args.output / "predictions.json"
    require_writable(target)
    entries: list[dict[str, Any]] = []
    images = detections = failures = 0
    progress = Progress(len(files))
    try:
        for file, name in files.items():
            several, read = is_sequence(file), Readable(file)
            for number, frame in enumerate(read):
                found = predictor(frame)
                place = {"file_name": file.as_posix(), **({"frame": number} if several else {})}
                image_id = int(file.stem) if by_number else images
                entries += [{**entry, **place} for entry in listed(found, image_id)]
                if not args.no_pictures:
                    pictures.write(name, number if several else None, drawn(frame, found))
                images += 1
                detections += len(found) if isinstance(found, Detections) else 0
                progress.frame(file, number)
            if read.error:
                failures += 1
                progress.say(read.error)
            progress.step()
    finally:  # what is done is kept if the rest is given up, and an older file if nothing is
        if images:
            write_text(target, "[" + ",\n".join(map(json.dumps, entries)) + "]\n")
        elif target.exists():
            progress.say(f"{target}: left as it was, as no image was predicted")
        progress.close()
    what = f"{detections} detections" if predictor.metadata.detector else "classified"
    if images:
        print(f"{images} images, {what}: {target}")
    if failures:
        print(f"{failures} of {len(files)} inputs could not be read", file=sys.stderr)
    return failures


def open_model(args: argparse.Namespace) -> Predictor:
    """Return the predictor of an exported file or of a checkpoint."""
    model: Path = args.model
    config: Path | None = args.config_file
    is_checkpoint = model.is_dir() or model.suffix == ".pth"
    if not is_checkpoint and model.suffix not in SUFFIXES:
        kinds = ", ".join((*SUFFIXES, ".pth"))
        raise ValueError(f"{model}: must be a run's folder or a file that ends in {kinds}")
    if config and (model.is_dir() or model.suffix not in (".pth", ".safetensors")):
        raise ValueError(f"--config-file={config}: is for .pth and .safetensors files")
    runtime = wanted_runtime(model, args.runtime)
    if not is_checkpoint:
        opened = open_exported(model, runtime, args.threads, config, trust=args.trust)
    else:
        opened = trained(model, config, args.threads)
    return Predictor.of(*opened, args.score)


def trained(model: Path, config: Path | None, threads: int) -> tuple[Network, Metadata]:
    """Return the network and the metadata of a run's folder or a checkpoint."""
    require(model, "torch", "fvcore")
    import torch

    from tr_det.export.subject import require_checkpoint

    weights = str(model)
    if model.is_dir():
        config, weights = find_run(model)
    require_checkpoint(weights, str(model))
    if config is None or config.is_dir():
        config = (config or model.parent) / CONFIG
    if not config.is_file():
        raise ValueError(f"{config}: no such file; give the run's config by --config-file")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return open_checkpoint(weights, config, threads, device)


def input_files(inputs: Sequence[Path], output: Path | None) -> dict[Path, Path]:
    """Return the files of the inputs and, for each, the name of its picture below the output.

    Args:
        inputs: files, which may have any suffix, and folders, which are searched for known ones.
        output: folder of pictures, which is left out; None if there are none.
    """
    found: dict[Path, Path] = {}
    own = output.resolve() if output else None
    for path in inputs:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        if own == (path if path.is_dir() else path.parent).resolve():
            raise ValueError(f"--output={output}: holds the inputs, which pictures might replace")
        if not path.is_dir():
            found.setdefault(path, Path(path.name))
            continue
        suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        below = [
            file
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in suffixes
            and file.is_file()
            and not file.name.startswith(".")
            and not (own and file.resolve().is_relative_to(own))
        ]
        if not below:
            raise ValueError(f"{path}: has no images and no videos")
        for file in below:
            found.setdefault(file, file.relative_to(path))
    return found


def are_numbered(files: Mapping[Path, Path]) -> bool:
    """Return whether the files' names are different numbers, each of one image."""
    stems = [file.stem for file in files]
    if not all(stem.isascii() and stem.isdigit() for stem in stems):
        return False
    return len(set(map(int, stems))) == len(stems) and not any(map(is_sequence, files))


class Readable:
    """The frames of a file, up to the first one that is broken.

    Attributes:
        error: what was wrong with that one, "" if nothing was.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.error = file, ""

    def __iter__(self) -> Iterator[Image.Image]:
        """Yield the frames; only errors of reading end here, not those of their use."""
        try:
            yield from frames(self.file)
        except (ValueError, OSError) as error:
            self.error = str(error)


def listed(found: Detections | Classification, image_id: int) -> list[dict[str, Any]]:
    """Return an image's entries of predictions.json."""
    if isinstance(found, Detections):
        named = zip(found.to_coco(image_id), found.names)
        return [{**entry, "category_name": name} for entry, name in named]
    best = [{"name": name, "probability": share} for name, share in found.best(BEST)]
    return [{"image_id": image_id, "classes": best}]


class Pictures:
    """Writes pictures under names of their inputs; two inputs of one name get two pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[Path] = set()

    def write(self, name: Path, frame: int | None, picture: Image.Image) -> None:
        """Write a picture, JPEG or PNG as the input is."""
        suffix = ".jpg" if name.suffix.lower() in (".jpg", ".jpeg", *VIDEO_SUFFIXES) else ".png"
        stem = name.stem if frame is None else f"{name.stem}_{frame:06d}"
        count, target = 1, self.folder / name.with_name(stem + suffix)
        while target in self.taken:
            count += 1
            target = self.folder / name.with_name(f"{stem}_{count}{suffix}")
        self.taken.add(target)
        with written_aside(target) as aside:
            picture.save(aside, quality=92)


def drawn(image: Image.Image, found: Detections | Classification) -> Image.Image:
    """Return an image with what was found, the best on top."""
    factor = max(1, LEGIBLE // max(image.size))
    size = (image.width * factor, image.height * factor)
    picture = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    pen, unit = ImageDraw.Draw(picture), max(1.0, max(size) / LEGIBLE / 2)
    font = _font(FONT_SIZE * unit)
    if isinstance(found, Classification):
        (name, share), *_ = found.best(1)
        _write(pen, font, (0, 0), f"{name} {share:.2f}", (255, 255, 255))
        return picture
    for i in reversed(range(len(found))):
        red, green, blue = colorsys.hsv_to_rgb(found.labels[i] * 0.618034 % 1, 0.75, 1)
        colour = (int(255 * red), int(255 * green), int(255 * blue))
        x0, y0, x1, y1 = (found.boxes[i] * factor).tolist()
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=round(2 * unit))
        _write(pen, font, (x0, y0), f"{found.names[i]} {found.scores[i]:.2f}", colour)
    return picture


def _font(size: float) -> Any:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()


def _write(
    pen: ImageDraw.ImageDraw, font: Any, corner: tuple[float, float], text: str, colour: Any
) -> None:
    """Write on a coloured field above a corner, or below where the picture ends."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(corner[0], pen.im.size[0] - width))
    y = corner[1] if corner[1] < height else corner[1] - height
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    pen.text((x + 2 - left, y + 2 - top), text, fill=(0, 0, 0), font=font)


class Progress:
    """Tells how far it is: a bar if tqdm is installed and somebody watches, otherwise lines."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.bar: Any = None
        if total > 1 and sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit="file")

    def frame(self, file: Path, number: int) -> None:
        """Tell of a long file."""
        if number and number % 100 == 0:
            self.say(f"{file}: {number} frames")

    def step(self) -> None:
        """Count a file."""
        self.done += 1
        if self.bar is not None:
            self.bar.update()
        elif self.total > 1 and self.done * 10 // self.total > (self.done - 1) * 10 // self.total:
            self.say(f"{self.done}/{self.total} files")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.bar is not None:
            self.bar.clear()
        print(line, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()


if __name__ == "__main__":
    main()
