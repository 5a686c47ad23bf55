import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tr_det.classification.config.reading import load_config
from tr_det.classification.data.datasets import load_data
from tr_det.classification.export import evaluate_exported, input_spec
from tr_det.digits.images import held_out
from tr_det.export.images import opened, prepared


@pytest.mark.parametrize(
    ("name", "interpolation"),
    [("imagenet", "bilinear"), ("imagenet", "bicubic"), ("folders", "bilinear")],
)
def test_an_image_becomes_what_the_test_data_make_of_it(folder, name, interpolation):
    random = np.random.default_rng(0)
    for part in ("train/cat", "val/cat", "val/dog"):
        (folder / part).mkdir(parents=True)
        pixels = random.integers(0, 256, (57, 83, 3), dtype=np.uint8)
        turned = Image.Exif()
        turned[0x0112] = 6  # a camera that was held upright
        Image.fromarray(pixels).save(folder / part / "image.png", exif=turned)
    pairs = ["data.name", name, "data.root", str(folder), "data.image_size", "32"]
    config = load_config("fp.yaml", [*pairs, "data.interpolation", interpolation])
    data = load_data(config.data)
    assert data.classes == ("cat", "dog")
    spec = input_spec(config, data)
    for number, label in enumerate(data.classes):
        image = opened(folder / "val" / label / "image.png")
        assert image.size == (57, 83)
        found = prepared(image, spec).images[0]
        np.testing.assert_allclose(found, data.test[number][0].numpy(), atol=1e-6)


def test_digits_are_normalised_as_they_were(folder):
    config = load_config("fp.yaml")
    data = load_data(config.data)
    spec = input_spec(config, data)
    digits = load_digits()
    shown = digits.images[held_out(digits.target, 0.25)] / 16
    expected = (shown - spec.mean[0]) / spec.std[0]
    np.testing.assert_allclose(data.test.images[:, 0].numpy(), expected, atol=1e-5)
    grey = Image.fromarray((shown[0] * 255).round().astype(np.uint8))
    np.testing.assert_allclose(prepared(grey, spec).images[0, 0], expected[0], atol=0.01)


class Knows:
    """Names the first digits' classes, and always 0 of the others."""

    def __init__(self, labels):
        self.labels = iter(labels)

    def run(self, inputs):
        labels = [next(self.labels, 0) for _ in inputs["images"]]
        return {"logits": np.eye(10, dtype=np.float32)[labels]}


def test_the_accuracy_is_that_of_the_images_that_were_asked_for(folder):
    config = load_config("fp.yaml")
    data = load_data(config.data)
    labels = data.test.labels.tolist()
    zeros = torch.tensor(labels[60:] + [0] * 60) == 0
    expected = 100 * (60 + int(zeros[: len(labels) - 60].sum())) / len(labels)
    found = evaluate_exported(config, data, Knows(labels[:60]))
    assert found["accuracy"] == pytest.approx(expected)
    assert evaluate_exported(config, data, Knows(labels[:60]), 40)["accuracy"] == 100
