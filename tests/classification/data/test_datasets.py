import gzip
import pickle
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from tr_det.classification.config.keys import DataConfig
from tr_det.classification.data.datasets import load_data
from tr_det.classification.data.images import IMAGENET_MEAN
from tr_det.classification.data.library import CIFAR


@pytest.fixture
def folders(tmp_path):
    """Write two classes of grey and red images, as ImageNet lies in folders."""
    for half, count in (("train", 3), ("val", 2)):
        for name, colour in (("n01", (128, 128, 128)), ("n02", (255, 0, 0))):
            folder = tmp_path / half / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (50, 40), colour).save(folder / f"{number}.png")
    return tmp_path


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Write CIFAR-10's pickles with five images each, whose pixels tell position and number."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rows = np.zeros((5, 3, 32, 32), np.uint8)
    rows[:, 0] = np.arange(32)[:, None]
    rows[:, 1] = np.arange(32)
    entry = {"data": rows.reshape(5, -1), "labels": [0, 1, 2, 3, 9]}
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        (folder / name).write_bytes(pickle.dumps(entry))
    meta = {CIFAR10.meta["key"]: [str(n) for n in range(10)]}
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return tmp_path


def test_imagenet_s_folders_give_normalised_crops_of_the_usual_size(folders):
    data = load_data(DataConfig(name="imagenet", root=str(folders)))
    assert (data.num_classes, data.channels) == (2, 3)
    assert (len(data.train), len(data.test)) == (6, 4)
    image, label = data.train[5]
    assert (tuple(image.shape), label) == ((3, 224, 224), 1)
    image, label = load_data(DataConfig(name="imagenet", root=str(folders), image_size=32)).test[0]
    assert (tuple(image.shape), label) == ((3, 32, 32), 0)
    red = (128 / 255 - IMAGENET_MEAN[0]) / 0.229
    torch.testing.assert_close(image[0], torch.full((32, 32), red), atol=1e-4, rtol=0)


def test_classes_of_both_halves_must_agree(folders):
    (folders / "val/n02").rename(folders / "val/n03")
    with pytest.raises(ValueError, match=r"train/ and val/ have folders of the same names"):
        load_data(DataConfig(name="imagenet", root=str(folders))).train  # noqa: B018


def test_images_that_predictions_take_are_trained_on_and_hidden_files_are_not(folders):
    (folders / "train/n01/._0.png").write_bytes(b"of macOS")
    Image.new("RGB", (50, 40)).save(folders / "train/n01/3.gif")
    config = DataConfig(name="imagenet", root=str(folders))
    names = [Path(path).name for path, _ in load_data(config).train.samples]
    assert names == ["0.png", "1.png", "2.png", "3.gif", "0.png", "1.png", "2.png"]


def test_evaluation_needs_no_training_images(folders):
    shutil.rmtree(folders / "train")
    data = load_data(DataConfig(name="imagenet", root=str(folders)))
    assert (len(data.test), data.num_classes) == (4, 2)
    with pytest.raises(ValueError, match="has no train/"):
        data.train  # noqa: B018


def test_the_share_that_is_cropped_and_the_interpolation_may_be_chosen(folders):
    common = {"name": "imagenet", "root": str(folders)}
    resize = load_data(DataConfig(**common)).test.transform.transforms[0]
    assert (resize.size, resize.interpolation.value) == (256, "bilinear")
    data = load_data(DataConfig(**common, crop_ratio=0.9, interpolation="bicubic"))
    resize = data.test.transform.transforms[0]
    assert (resize.size, resize.interpolation.value) == (248, "bicubic")  # timm's for DeiT
    assert data.train.transform.transforms[0].interpolation.value == "bicubic"


def test_the_first_process_downloads_and_the_others_wait(cifar, monkeypatch):
    import torchvision

    plain, calls = torchvision.datasets.CIFAR10, []

    def recorded(root, train=True, transform=None, download=False):
        calls.append("download" if download else "open")
        return plain(root, train, transform)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", recorded)
    monkeypatch.setattr(
        "tr_det.classification.data.library.wait_for_all", lambda: calls.append("wait")
    )
    for rank, expected in ((0, ["download", "wait", "open"]), (1, ["wait", "open"])):
        calls.clear()
        monkeypatch.setattr("tr_det.classification.data.library.rank", lambda rank=rank: rank)
        load_data(DataConfig(name="cifar10", root=str(cifar), download=True))
        assert calls == expected


def test_cifar_is_shifted_and_flipped_in_training_only(cifar):
    data = load_data(DataConfig(name="cifar10", root=str(cifar)))
    assert (data.num_classes, len(data.train), len(data.test)) == (10, 25, 5)
    plain, label = data.test[4]
    assert label == 9
    mean, std = (torch.tensor(values)[:, None, None] for values in CIFAR)
    pixels = plain * std + mean
    torch.testing.assert_close((255 * pixels[0, :, 0]).round(), torch.arange(32.0))
    torch.manual_seed(0)
    seen = [data.train[0][0] for _ in range(20)]
    assert len({image.numpy().tobytes() for image in seen}) > 10
    left_to_right = [(image[1, 16, 20] > image[1, 16, 12]).item() for image in seen]
    assert 0 < sum(left_to_right) < 20


def write_fashion_mnist(folder, packed):
    """Write idx files with three images in each half; return the pixels."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        images = np.array([0x803, 3, 28, 28], ">i4").tobytes() + pixels.tobytes()
        labels = np.array([0x801, 3], ">i4").tobytes() + bytes([9, 0, 3])
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{part}-{kind}-ubyte"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return pixels


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["FashionMNIST/raw", "flat"])
def test_fashion_mnist_is_read_from_its_idx_files(tmp_path, below, packed):
    pixels = write_fashion_mnist(tmp_path / below, packed)
    root = tmp_path / below if below == "flat" else tmp_path
    config = DataConfig(name="fashion_mnist", root=str(root), mean=(0.5,), std=(0.25,))
    data = load_data(config)
    assert (data.channels, data.image_size, data.classes[9]) == (1, 28, "Ankle boot")
    assert [label for _, label in data.test] == [9, 0, 3]
    for (image, _), expected in zip(data.test, pixels, strict=True):
        np.testing.assert_allclose(image[0] * 0.25 + 0.5, expected / 255, atol=1e-6)
    torch.manual_seed(0)
    assert len({data.train[0][0].numpy().tobytes() for _ in range(20)}) > 10  # shifted, flipped
    (tmp_path / below).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"data\.root=.*FashionMNIST in torchvision's layout"):
        load_data(config)


def test_idx_files_that_are_broken_are_named(tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path / "good", packed=False)
    labels, images = "t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"
    for name, content, message in (
        (images, b"", "cannot be read .no idx file of bytes with 3 dimensions"),
        (images, b"\0\0\x08\x03" + bytes(5), "cannot be read"),
        (labels, (tmp_path / "good" / labels).read_bytes()[:-1], "cannot be read .*reshape"),
        (
            labels,
            b"\0\0\x08\x01\0\0\0\x03\0\x0a\0",
            "must have a label from 0 to 9 for each of the 3",
        ),
        (f"{labels}.gz", b"\x1f\x8b no", "cannot be read"),
    ):
        root = shutil.copytree(tmp_path / "good", tmp_path / "bad")
        (root / name.removesuffix(".gz")).unlink()
        (root / name).write_bytes(content)
        with pytest.raises(OSError, match=f"{root}/{name}: {message}"):
            load_data(DataConfig(name="fashion_mnist", root=str(root)))
        shutil.rmtree(root)

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(OSError, match=r"(?s)data\.download: Error downloading .*no network"):
        load_data(DataConfig(name="fashion_mnist", root=str(tmp_path), download=True))


def test_images_of_one_s_own_are_small_ones_as_cifar_or_larger_ones_as_imagenet(folders):
    (folders / "val").rename(folders / "test")
    config = {"name": "folders", "root": str(folders)}
    with pytest.raises(
        ValueError, match=r"data\.image_size=0: must be given: images are not square"
    ):
        load_data(DataConfig(**config))
    small = load_data(DataConfig(**config, image_size=32))
    assert (small.classes, small.image_size, len(small.test)) == (("n01", "n02"), 32, 4)
    torch.manual_seed(0)
    corners = [small.train[5][0][0, 0, 0].item() for _ in range(40)]
    black = (0 - IMAGENET_MEAN[0]) / 0.229
    assert 0 < sum(abs(corner - black) < 1e-4 for corner in corners) < 40  # shifted over the edge
    large = load_data(DataConfig(**config, image_size=96))
    assert (large.shorter_side, tuple(large.train[0][0].shape)) == (109, (3, 96, 96))
    Image.new("RGB", (48, 48)).save(folders / "test/n01/0.png")
    assert load_data(DataConfig(**config)).image_size == 48
    (folders / "test/n02").rename(folders / "test/n03")
    with pytest.raises(
        ValueError, match=r"folders of the same names; only one has \['n02', 'n03'\]"
    ):
        load_data(DataConfig(**config)).train  # noqa: B018
    shutil.rmtree(folders / "test/n03")
    with pytest.raises(ValueError, match=r"data\.root=.*only \['n01'\] in .*two or more"):
        load_data(DataConfig(**config))
    (folders / "test/n03").mkdir()
    with pytest.raises(ValueError, match=r"data\.root=.*one folder of images per class.*n03"):
        load_data(DataConfig(**config))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mean": (0.5,)}, r"data\.std=\(\): must be"),
        ({"mean": (0.5,), "std": (0.0,)}, r"data\.std=\(0\.0,\): must be in"),
        ({"mean": (128.0,), "std": (64.0,)}, r"data\.mean=\(128\.0,\): must be in \[0, 1\]"),
        ({"mean": (0.5,) * 2, "std": (0.5,) * 2, "name": "imagenet"}, "must be 3 numbers"),
        ({"mean": (0.5,), "std": (0.5,)}, "for digits"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(folders, keys, message):
    with pytest.raises(ValueError, match=message):
        load_data(DataConfig(root=str(folders), **keys))


def test_digits_are_shifted_in_training_only():
    data = load_data(DataConfig())
    torch.manual_seed(0)
    assert len({data.train[0][0].numpy().tobytes() for _ in range(200)}) == 9
    assert len({data.test[0][0].numpy().tobytes() for _ in range(5)}) == 1


def test_a_share_of_less_than_an_image_is_refused():
    with pytest.raises(ValueError, match=r"data\.hold_out=1e-12: must be 0, or a share"):
        load_data(DataConfig(hold_out=1e-12))


def test_a_share_of_the_training_images_is_held_out_whole_and_plain():
    whole, held = load_data(DataConfig()), load_data(DataConfig(hold_out=0.25))
    assert len(held.test) == round(len(whole.train) / 4)
    assert len(held.train) + len(held.test) == len(whole.train)
    plain = whole.load_plain()
    images = {image.numpy().tobytes(): label for image, label in plain}
    tested = [image.numpy().tobytes() for image, _ in held.test]
    kept = [image.numpy().tobytes() for image, _ in held.load_plain()]
    assert sorted([*tested, *kept]) == sorted(image.numpy().tobytes() for image, _ in plain)
    assert {images[image] for image in tested} == set(range(10))
    again = load_data(DataConfig(hold_out=0.25)).test
    assert tested == [image.numpy().tobytes() for image, _ in again]
