"""Images: read from files and videos, and made into a network's input; NumPy and Pillow only.

An input is, bit for bit, what Detectron2's predictor gives its backbone, or what torchvision's
transforms give a classifier.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tr_det.export.metadata import CentreCrop, InputSpec, ShortestEdge

Source = str | Path | Image.Image | np.ndarray
"""An image: a file, an image of Pillow's, or (H, W, 3) or (H, W) uint8, colours as RGB."""

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)

# Cameras put previews into JPEG files as further frames (MPO): those are not a sequence.
_SEQUENCES = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what sets it right."""
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Prepared:
    """A network's input.

    Attributes:
        images: (1, C, H, W) float32, normalised, padded with 0 at the right and the bottom.
        size: height and width of the resized image, without padding.
        original_size: height and width of the image.
    """

    images: np.ndarray
    size: tuple[int, int]
    original_size: tuple[int, int]


def opened(source: Source) -> Image.Image:
    """Return an image, upright; of several frames the first.

    Raises:
        FileNotFoundError: no such file.
        OSError: a file that is not a whole image.
        ValueError: an array of another shape or type.
    """
    if isinstance(source, np.ndarray):
        fits = source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)
        if not fits or source.dtype != np.uint8 or source.size == 0:
            found = f"{source.dtype} {source.shape}"
            raise ValueError(f"image={found}: must be uint8, (H, W, 3) in the order RGB or (H, W)")
        return Image.fromarray(np.ascontiguousarray(source))
    if isinstance(source, Image.Image):
        return _upright(source)
    with _decoding(source), Image.open(source) as image:
        image.load()
        return _upright(image)


def frames(path: str | Path) -> Iterator[Image.Image]:
    """Yield the frames of a file, upright: of an image one, unless it is animated, or a video's.

    Raises:
        FileNotFoundError: no such file.
        OSError: a file that is broken, perhaps after some frames.
        ValueError: a video, and PyAV is not installed.
    """
    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        yield from _video_frames(path)
        return
    with contextlib.ExitStack() as stack:
        with _decoding(path):
            image = stack.enter_context(Image.open(path))
            count = getattr(image, "n_frames", 1) if image.format in _SEQUENCES else 1
        for number in range(count):
            with _decoding(path):
                image.seek(number)
                image.load()
                frame = _upright(image.copy() if count > 1 else image)
            yield frame


def is_sequence(path: str | Path) -> bool:
    """Return whether a file is a video or an image of several frames; False if it is broken."""
    if Path(path).suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        with _decoding(path), Image.open(path) as image:
            return image.format in _SEQUENCES and getattr(image, "n_frames", 1) > 1
    except OSError:
        return False


def prepared(image: Image.Image, spec: InputSpec) -> Prepared:
    """Return an upright image as a network's input."""
    original_size = (image.height, image.width)
    if spec.color == "L":
        image = image.convert("L")
    else:  # Pillow resizes each channel by itself: the order can wait
        image = image.convert("RGB")
    pixels = np.asarray(_resized(image, spec.resize))
    if spec.color == "L":
        pixels = pixels[:, :, None]
    elif spec.color == "BGR":
        pixels = pixels[:, :, ::-1]
    values = pixels.transpose(2, 0, 1).astype(np.float32)
    # Divided by 255, as torchvision does it, not multiplied by the rounded 1 / 255.
    values /= np.float32(1 / spec.scale)
    values -= np.array(spec.mean, dtype=np.float32)[:, None, None]
    values /= np.array(spec.std, dtype=np.float32)[:, None, None]
    height, width = values.shape[1:]
    padding = [(0, -height % spec.divisor), (0, -width % spec.divisor)]
    images = np.pad(values, [(0, 0), *padding])[None]
    return Prepared(np.ascontiguousarray(images), (height, width), original_size)


def _upright(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would clip them at 255
        raise ValueError(f"has pixels of mode {image.mode}; must have 8 bits a channel")
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # broken EXIF data, which may raise anything; the pixels are fine
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _resized(image: Image.Image, resize: ShortestEdge | CentreCrop | None) -> Image.Image:
    width, height = image.size
    if isinstance(resize, ShortestEdge) and resize.short:
        # In this order of operations: the products decide which way a half is rounded.
        scale = resize.short / min(height, width)
        if height < width:
            new_height, new_width = float(resize.short), scale * width
        else:
            new_height, new_width = scale * height, float(resize.short)
        if max(new_height, new_width) > resize.long:
            scale = resize.long / max(new_height, new_width)
            new_height, new_width = new_height * scale, new_width * scale
        size = (max(1, int(new_width + 0.5)), max(1, int(new_height + 0.5)))
        return image.resize(size, Image.Resampling.BILINEAR)
    if isinstance(resize, CentreCrop):
        long = int(resize.size * max(width, height) / min(width, height))
        size = (resize.size, long) if width <= height else (long, resize.size)
        if size != image.size:
            image = image.resize(size, Image.Resampling[resize.interpolation.upper()])
        left = round((size[0] - resize.crop) / 2)
        top = round((size[1] - resize.crop) / 2)
        return image.crop((left, top, left + resize.crop, top + resize.crop))
    return image


def _video_frames(path: Path) -> Iterator[Image.Image]:
    try:
        av = importlib.import_module("av")
    except ImportError:
        raise ValueError(
            f"{path}: videos need PyAV, which is not installed; pip install av"
        ) from None
    with contextlib.ExitStack() as stack:
        with _decoding(path):
            if not path.is_file():  # PyAV's errors are of many kinds
                raise FileNotFoundError
            container = stack.enter_context(av.open(str(path)))
            if not container.streams.video:
                raise OSError("it has no video stream")
            decoded = iter(container.decode(video=0))
        while True:
            with _decoding(path):
                frame: Any = next(decoded, None)
                if frame is None:
                    return
                # Phones store a turned picture and the angle, counter-clockwise.
                angle = getattr(frame, "rotation", 0)
                image: Image.Image = frame.to_image()
                if angle:
                    image = image.rotate(angle, expand=True)
            yield image


@contextlib.contextmanager
def _decoding(path: str | Path) -> Iterator[None]:
    """Name the file in whatever a decoder raises; for broken files that may be anything."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Exception as error:
        raise OSError(f"{path}: cannot be read ({error})") from error
