"""Inputs are compared with Detectron2's and torchvision's, bit for bit."""

import dataclasses

import numpy as np
import pytest
import torch
from detectron2.data import transforms
from detectron2.data.detection_utils import read_image
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from PIL import Image
from torchvision import transforms as vision

from tests.export.detector_case import Pools
from tr_det.export.images import frames, is_sequence, opened, prepared
from tr_det.export.metadata import CentreCrop, InputSpec, ShortestEdge

BGR = InputSpec(3, "BGR", 1.0, (103.53, 116.28, 123.675), (57.4, 57.1, 1.0), 32, None)
GREY = dataclasses.replace(BGR, channels=1, color="L", mean=(110.1,), std=(57.3,))


def noise(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def by_detectron2(path, spec):
    """Return what the backbone gets from Detectron2's predictor."""
    image = read_image(path, format=spec.color)
    augmentation = transforms.ResizeShortestEdge([spec.resize.short] * 2, spec.resize.long)
    image = augmentation.get_transform(image).apply_image(image)
    tensor = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
    model = DenseDetector(
        Pools(), torch.nn.Identity(), ["p3"], pixel_mean=spec.mean, pixel_std=spec.std
    )
    images = model.preprocess_image([{"image": tensor}])
    return images.tensor.numpy(), images.image_sizes[0]


def check(path, spec):
    found = prepared(opened(path), spec)
    images, size = by_detectron2(path, spec)
    assert found.size == size
    assert found.images.flags.c_contiguous
    np.testing.assert_array_equal(found.images, images, strict=True)
    return found


@pytest.mark.parametrize(
    ("height", "width", "short", "long"),
    [
        (45, 63, 64, 96),  # enlarged; neither side is a multiple of 32
        (63, 45, 64, 80),  # the longer side decides
        (150, 201, 67, 333),
        (33, 201, 67, 333),
        (64, 64, 64, 64),
        (37, 41, 0, 0),  # not resized
    ],
)
@pytest.mark.parametrize(
    "spec", [BGR, dataclasses.replace(BGR, color="RGB"), GREY], ids=lambda spec: spec.color
)
def test_an_input_is_that_of_detectron2(tmp_path, height, width, short, long, spec):
    noise(height, width).save(tmp_path / "a.png")
    spec = dataclasses.replace(spec, resize=ShortestEdge(short, long))
    found = check(tmp_path / "a.png", spec)
    assert found.original_size == (height, width)


@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_cameras_orientation_is_followed(tmp_path, orientation):
    path, exif = tmp_path / "a.jpg", Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    noise(45, 63).save(path, exif=exif, quality=95)
    spec = dataclasses.replace(BGR, resize=ShortestEdge(64, 96))
    found = check(path, spec)
    with Image.open(path) as image:  # not loaded yet
        np.testing.assert_array_equal(prepared(opened(image), spec).images, found.images)
    array = np.asarray(opened(path))
    np.testing.assert_array_equal(prepared(opened(array), spec).images, found.images)
    (frame,) = frames(path)
    np.testing.assert_array_equal(np.asarray(frame), array)


@pytest.mark.parametrize("spec", [BGR, GREY], ids=lambda spec: spec.color)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_kind_of_pixels_is_read_as_detectron2_reads_it(tmp_path, mode, spec):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    noise(30, 40).convert(mode).save(path)
    check(path, dataclasses.replace(spec, resize=ShortestEdge(64, 96)))


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_pixels_of_more_than_8_bits_are_refused_instead_of_clipped(tmp_path, kind):
    path = tmp_path / "a.tif"
    Image.fromarray(np.arange(900).reshape(30, 30).astype(kind)).save(path)
    with pytest.raises(OSError, match=r"a\.tif: cannot be read .*must have 8 bits a channel"):
        opened(path)
    with pytest.raises(OSError, match=r"a\.tif: cannot be read .*must have 8 bits a channel"):
        next(frames(path))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size", "crop"), [(45, 63, 36, 32), (63, 46, 37, 28), (32, 32, 32, 32)]
)
def test_a_classifiers_input_is_that_of_torchvision(height, width, size, crop, interpolation):
    image, mean, std = noise(height, width), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    resize = CentreCrop(size, crop, interpolation)
    spec = InputSpec(3, "RGB", 1 / 255, mean, std, 1, resize)
    expected = vision.Compose(
        [
            vision.Resize(size, vision.InterpolationMode(interpolation)),
            vision.CenterCrop(crop),
            vision.ToTensor(),
            vision.Normalize(mean, std),
        ]
    )(image)
    np.testing.assert_array_equal(prepared(image, spec).images[0], expected.numpy(), strict=True)


def test_a_thin_image_keeps_a_row():
    spec = dataclasses.replace(BGR, resize=ShortestEdge(64, 96))
    assert prepared(noise(1, 900), spec).size == (1, 96)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match="image=.*must be uint8"):
        opened(array)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_frames_of_an_animation(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    images = [Image.new("RGB", (40, 30), colour) for colour in colours]
    images[0].save(path, save_all=True, append_images=images[1:], lossless=True)
    assert is_sequence(path)
    found = [np.asarray(frame.convert("RGB")) for frame in frames(path)]
    assert [frame.shape for frame in found] == [(30, 40, 3)] * 3
    np.testing.assert_allclose([frame[3, 4] for frame in found], colours, atol=3)
    np.testing.assert_array_equal(np.asarray(opened(path).convert("RGB")), found[0])


def test_previews_in_a_cameras_file_are_no_frames(tmp_path):
    noise(40, 30).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[noise(20, 15)]
    )
    assert not is_sequence(tmp_path / "a.jpg")
    assert [frame.size for frame in frames(tmp_path / "a.jpg")] == [(30, 40)]


def test_broken_files_are_named(tmp_path):
    noise(40, 30).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png"):
        for read in (opened, lambda path: list(frames(path))):
            with pytest.raises(OSError, match=f"{name}: cannot be read"):
                read(tmp_path / name)
        assert not is_sequence(tmp_path / name)
    for read in (opened, lambda path: list(frames(path))):
        with pytest.raises(FileNotFoundError, match=r"lost.png: no such file"):
            read(tmp_path / "lost.png")


def test_frames_before_a_broken_one_are_there(tmp_path):
    images = [noise(60, 80, seed) for seed in range(4)]
    images[0].save(tmp_path / "whole.gif", save_all=True, append_images=images[1:])
    content = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(content[: len(content) * 3 // 4])
    found = frames(tmp_path / "cut.gif")
    assert next(found).size == (80, 60)
    assert next(found).size == (80, 60)
    with pytest.raises(OSError, match=r"cut.gif: cannot be read"):
        list(found)


def test_a_video_needs_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"a.mp4: videos need PyAV.*pip install av"):
        next(frames(tmp_path / "a.mp4"))


def test_frames_of_a_video(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    values = [20, 120, 230]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in values:
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (value,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert is_sequence(path)
    found = [np.asarray(frame) for frame in frames(path)]
    assert [frame.shape for frame in found] == [(48, 64, 3)] * 3
    np.testing.assert_allclose([frame.mean() for frame in found], values, atol=6)
    (tmp_path / "text.mp4").write_text("no video")
    for name, message in (("text.mp4", "cannot be read"), ("lost.mp4", "no such file")):
        with pytest.raises(OSError, match=f"{name}: {message}"):
            next(frames(tmp_path / name))
