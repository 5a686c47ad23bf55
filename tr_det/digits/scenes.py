"""Detection scenes composed of scikit-learn's handwritten digits.

A scene is a pure function of a ``numpy.random.Generator``: a cluttered background, then one to
eight digits painted from the largest to the smallest, then mild blur and noise. All coordinates are
in pixels with the origin at the image's top left corner; luminance and colour are floats in 0..1
until the last step.

The 8x8 source is not enlarged as a picture. It is a smooth scalar field, sampled through an affine
map and then thresholded with a ramp about one output pixel wide, as distance-field fonts are, so
that strokes have clean soft edges at 14 px and at 120 px alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, floor, radians, sin, tan

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

MIN_HEIGHT = 14.0  # px; below that a digit of 8x8 cells is no longer readable
LARGE_SHARE = 0.2  # share of scenes that hold one digit near COCO's "large" (area >= 96^2)
MAX_IOU = 0.2  # of any two boxes in a scene
MIN_VISIBLE = 0.8  # share of a digit's ink that later digits leave visible
MIN_VISIBLE_BOX = 0.9  # IoU of the box of the visible ink with the annotated box
MAX_FOREIGN_INK = 0.2  # share of a digit's box that other digits' ink may cover
MIN_CONTRAST = 0.2  # luminance step kept against nearly all of the pixels around a digit

_CELL = 8  # field samples per source pixel
_PAD = 2  # empty source pixels around the 8x8 digit, so that no stroke is cut by the interpolation
_COUNT_SHARES = (0.12, 0.18, 0.20, 0.18, 0.13, 0.09, 0.06, 0.04)  # of 1..8 digits
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass
class Scene:
    """One composed image with its ground truth.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        boxes: (N, 4) float64, x, y, width, height in px, tight around the ink, inside the image.
        labels: (N,) class indices 0..9.
        sources: (N,) indices of the digits in ``sklearn.datasets.load_digits``.
        ink: (N, size, size) bool, the whole ink of each digit, also where a later one covers it.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    ink: np.ndarray


@dataclass
class _Placed:
    """A digit on the canvas."""

    source: int
    alpha: np.ndarray  # (size, size)
    box: tuple[float, float, float, float]  # x0, y0, x1, y1
    shown: np.ndarray  # the alpha that later digits leave visible, (size, size)


class Glyphs:
    """The 1797 source digits as smooth fields.

    Attributes:
        labels: (1797,) class of each source digit.
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # a slow import that only a build needs

        data = load_digits()
        self.labels: np.ndarray = np.asarray(data.target, dtype=np.int64)
        self._pixels = np.asarray(data.images, dtype=np.float32)
        self._fields: dict[int, Image.Image] = {}

    def field(self, source: int) -> Image.Image:
        """Return the digit's ink density, 0..1, as a 96x96 float image (8 samples per cell)."""
        if source not in self._fields:
            cells = np.pad(self._pixels[source] / self._pixels[source].max(), _PAD)
            side = cells.shape[0] * _CELL
            image = Image.fromarray(cells.astype(np.float32))
            self._fields[source] = image.resize((side, side), Image.Resampling.BICUBIC)
        return self._fields[source]


def compose_scene(
    rng: np.random.Generator, size: int, glyphs: Glyphs, pools: list[np.ndarray]
) -> Scene:
    """Compose one scene of at least one digit.

    Args:
        rng: the only source of randomness.
        size: side of the square image in px.
        glyphs: the source digits.
        pools: for each class 0..9 the indices of the source digits that may be used.
    """
    placed: list[_Placed] = []
    while not placed:  # on an unlucky background no digit is readable
        canvas = _background(rng, size)
        for height, width in _draw_sizes(rng, size):
            label = int(rng.integers(10))
            source = int(rng.choice(pools[label]))
            digit = _place(rng, canvas, placed, glyphs, source, height, width)
            if digit is not None:
                placed.append(digit)
    boxes = np.array([d.box for d in placed])
    boxes[:, 2:] -= boxes[:, :2]
    return Scene(
        image=_finish(rng, canvas, smallest=float(boxes[:, 3].min())),
        boxes=boxes,
        labels=glyphs.labels[[d.source for d in placed]],
        sources=np.array([d.source for d in placed]),
        ink=np.stack([d.alpha > 0.5 for d in placed]),
    )


def _draw_sizes(rng: np.random.Generator, size: int) -> list[tuple[float, float | None]]:
    """Draw box heights in px, largest first, each with a target width or None."""
    count = 1 + int(rng.choice(8, p=_COUNT_SHARES))
    sizes: list[tuple[float, float | None]] = []
    top = 0.72 if count <= 2 else 0.56 if count <= 4 else 0.42
    if rng.random() < LARGE_SHARE:
        # A digit's natural width is about 0.65 of its height, so at 128 px the area passes 96^2
        # only with a target width as well.
        sizes.append((size * rng.uniform(0.84, 0.96), size * rng.uniform(0.66, 0.86)))
        count, top = min(count, 5) - 1, 0.34
    low, high = np.log(MIN_HEIGHT), np.log(max(size * top, MIN_HEIGHT + 1))
    rest = np.exp(low + (high - low) * rng.random(count) ** 0.65)
    return sizes + [(float(h), None) for h in np.sort(rest)[::-1]]


def _place(
    rng: np.random.Generator,
    canvas: np.ndarray,
    placed: list[_Placed],
    glyphs: Glyphs,
    source: int,
    height: float,
    width: float | None,
) -> _Placed | None:
    """Paint one digit where all digits stay readable; return None if no such place was found."""
    size = canvas.shape[0]
    density = glyphs.field(source)
    threshold = rng.uniform(0.4, 0.52)  # stroke weight: lower fills 6, 8, 9, higher breaks 0
    linear, corner, extent = _shape(rng, density, threshold, height, width)
    slack = 0.1 * extent if rng.random() < 0.1 else 0 * extent  # a few touch the border
    for _ in range(24):
        low, high = 1 - slack, size - 1 - extent + slack
        at = np.where(high > low, rng.uniform(low, np.maximum(high, low + 1e-6)), (low + high) / 2)
        rough = (at[0], at[1], at[0] + extent[0], at[1] + extent[1])
        if any(_iou(rough, other.box) > MAX_IOU for other in placed):
            continue
        alpha = _render(density, threshold, linear, at - linear @ corner, rough, size)
        box = _ink_box(alpha)
        if box is None:
            continue
        digit = _Placed(source, alpha, box, shown=alpha)
        shown = [other.shown * (1 - alpha) for other in placed]
        if not _readable(digit, placed, shown):
            continue
        colour = _ink_colour(rng, canvas, digit, placed)
        if colour is None:
            continue
        for other, left in zip(placed, shown):
            other.shown = left
        canvas += alpha[..., None] * (colour - canvas)
        return digit
    return None


def _shape(
    rng: np.random.Generator,
    density: Image.Image,
    threshold: float,
    height: float,
    width: float | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw rotation, shear and aspect ratio, scaled to the target height of the ink.

    Returns:
        The 2x2 map from field samples to pixels, the field point that it takes to the top left
        corner of the ink's box, and the box's (width, height) in px.
    """
    turn = radians(rng.normal(0, 7))
    shear = np.array([[1, tan(radians(rng.normal(0, 7)))], [0, 1]])
    rotate = np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]])
    aspect = float(np.exp(rng.normal(0, 0.12)))
    ys, xs = np.nonzero(np.asarray(density) > threshold)
    points = np.stack([xs, ys]) + 0.5
    if width is not None:
        spread = np.ptp(rotate @ shear @ points, axis=1)
        aspect = float(np.clip(width / height * spread[1] / spread[0], 0.9, 1.4))
    linear = rotate @ shear @ np.diag([aspect, 1.0])
    linear *= height / np.ptp((linear @ points)[1])
    mapped = linear @ points
    corner = np.linalg.solve(linear, mapped.min(axis=1))
    return linear, corner, np.ptp(mapped, axis=1)


def _render(
    density: Image.Image,
    threshold: float,
    linear: np.ndarray,
    offset: np.ndarray,
    rough: tuple[float, float, float, float],
    size: int,
) -> np.ndarray:
    """Return the digit's alpha, (size, size) float32; only the rough box's surroundings are drawn.

    The ramp around the threshold spans about 1.2 px: density rises by about 0.8 per source cell.
    """
    x0, y0 = max(floor(rough[0]) - 3, 0), max(floor(rough[1]) - 3, 0)
    x1, y1 = min(ceil(rough[2]) + 3, size), min(ceil(rough[3]) + 3, size)
    back = np.linalg.inv(linear)
    shift = back @ (np.array([x0, y0]) - offset)
    data = (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1])
    window = density.transform(
        (x1 - x0, y1 - y0), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC
    )
    pixels_per_cell = _CELL * abs(np.linalg.det(linear)) ** 0.5
    ramp = np.clip((np.asarray(window) - threshold) * pixels_per_cell + 0.5, 0, 1)
    alpha = np.zeros((size, size), dtype=np.float32)
    alpha[y0:y1, x0:x1] = ramp * ramp * (3 - 2 * ramp)
    return alpha


def _ink_box(alpha: np.ndarray) -> tuple[float, float, float, float] | None:
    """Return x0, y0, x1, y1 around the pixels that are more ink than background."""
    ink = alpha > 0.5
    xs, ys = np.flatnonzero(ink.any(axis=0)), np.flatnonzero(ink.any(axis=1))
    if not xs.size:
        return None
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the intersection over union of two x0, y0, x1, y1 boxes."""
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (areas - w * h)


def _crop(values: np.ndarray, box: tuple[float, ...], margin: int = 0) -> np.ndarray:
    x0, y0, x1, y1 = (int(v) for v in box)
    return values[max(y0 - margin, 0) : y1 + margin, max(x0 - margin, 0) : x1 + margin]


def _readable(digit: _Placed, placed: list[_Placed], shown: list[np.ndarray]) -> bool:
    """Return whether the new digit and those that it partly covers can all be recognised."""
    for other, left in zip(placed, shown):
        left_box = _ink_box(left)
        if (
            _iou(digit.box, other.box) > MAX_IOU
            # A digit crossed by, or filled with, much ink of another one becomes a different shape.
            or _crop(other.alpha, digit.box).mean() > MAX_FOREIGN_INK
            or _crop(digit.alpha, other.box).mean() > MAX_FOREIGN_INK
            or left.sum() < MIN_VISIBLE * other.alpha.sum()
            or left_box is None
            or _iou(left_box, other.box) < MIN_VISIBLE_BOX
        ):
            return False
    return True


def _ink_colour(
    rng: np.random.Generator, canvas: np.ndarray, digit: _Placed, placed: list[_Placed]
) -> np.ndarray | None:
    """Draw an ink colour, lighter or darker than what lies below; None if contrast is too low."""
    around = (_crop(canvas, digit.box, margin=2) @ _LUMA).ravel()
    below, step = float(around.mean()), rng.uniform(0.33, 0.75)
    options = [v for v in (below - step, below + step) if 0.02 <= v <= 0.98]
    level = 0.04 if below > 0.5 else 0.96
    if options:
        level = options[int(rng.integers(len(options)))]
    tint = rng.normal(0, 1, 3) * rng.uniform(0, 0.16)
    colour = np.clip(level + tint - tint @ _LUMA, 0, 1).astype(np.float32)
    contrast = np.abs(around - colour @ _LUMA)
    if np.quantile(contrast, 0.08) < MIN_CONTRAST:
        return None
    for other in placed:  # strokes that touch must stay distinct
        touched = _crop(other.alpha, digit.box, margin=2).ravel() > 0.5
        if touched.any() and np.median(contrast[touched]) < MIN_CONTRAST:
            return None
    return colour


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a cluttered background, (size, size, 3) float32.

    No closed outlines and no short strokes, which would look like unlabelled zeros and ones.
    """
    base = rng.uniform(0.1, 0.9)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
    tints = rng.normal(0, 1, (2, 3)) * rng.uniform(0, 0.12)
    t = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = (cos(angle) * t[None, :] + sin(angle) * t[:, None])[..., None]
    canvas = base + tints[0] + ramp * (slope + tints[1])
    for cells in rng.choice((3, 6, 12, 24), size=int(rng.integers(0, 3)), replace=False):
        noise = rng.normal(0, rng.uniform(0.02, 0.07), (cells, cells)).astype(np.float32)
        noise_image = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
        canvas = canvas + np.asarray(noise_image)[..., None]
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8))
    for _ in range(int(rng.integers(0, 7))):
        mean = np.asarray(image.resize((1, 1), Image.Resampling.BOX), dtype=np.float64)[0, 0]
        shade = mean + rng.normal(0, 45) + rng.normal(0, 15, 3)
        _clutter(rng, ImageDraw.Draw(image, "RGBA"), size, np.clip(shade, 0, 255))
    return np.asarray(image, dtype=np.float32) / 255


def _clutter(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int, shade: np.ndarray
) -> None:
    """Draw one filled shape or one long thin line."""
    fill = (*(int(v) for v in shade), int(rng.integers(90, 230)))
    kind = int(rng.integers(4))
    x, y = rng.uniform(-0.2, 1.0, 2) * size
    if kind == 0:
        w, h = np.exp(rng.uniform(np.log(0.1), np.log(0.8), 2)) * size
        draw.rectangle((x, y, x + w, y + h), fill=fill)
    elif kind == 1:
        w, h = rng.uniform(0.25, 0.8, 2) * size
        draw.ellipse((x, y, x + w, y + h), fill=fill)
    elif kind == 2:
        corners = rng.uniform(-0.2, 1.2, (3, 2)) * size
        draw.polygon([tuple(p) for p in corners], fill=fill)
    else:  # a curve from border to border
        side = rng.uniform(-0.1, 1.1, 3) * size
        ends = np.array([[-4, side[0]], [size / 2, 2 * side[1] - size / 2], [size + 4, side[2]]])
        if rng.random() < 0.5:
            ends = ends[:, ::-1]
        t = np.linspace(0, 1, 25)[:, None]
        curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
        width = 1 + int(rng.integers(3))
        draw.line([tuple(p) for p in curve], fill=fill, width=width, joint="curve")


def _finish(rng: np.random.Generator, canvas: np.ndarray, smallest: float) -> np.ndarray:
    """Add camera blur (less where digits are small) and sensor noise; return uint8."""
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))
    sigma = rng.uniform(0, 0.9 if smallest > 24 else 0.5)
    if sigma > 0.25:
        image = image.filter(ImageFilter.GaussianBlur(sigma))
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * (255 * rng.uniform(0, 0.03))
    noisy: np.ndarray = np.clip(np.asarray(image) + noise + 0.5, 0, 255)
    return noisy.astype(np.uint8)
