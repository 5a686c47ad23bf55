from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tr_det.classification.config.reading import load_config
from tr_det.classification.data.datasets import load_data
from tr_det.classification.export import classifier_metadata, evaluate_exported, input_spec
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
    metadata = classifier_metadata(config, data)
    found = evaluate_exported(config, data, metadata, Knows(labels[:60]))
    assert found["accuracy"] == pytest.approx(expected)
    assert evaluate_exported(config, data, metadata, Knows(labels[:60]), 40)["accuracy"] == 100


def test_images_of_other_classes_or_made_otherwise_than_the_file_takes_them_are_refused(folder):
    config = load_config("fp.yaml")
    data = load_data(config.data)
    metadata = classifier_metadata(config, data)
    others = replace(metadata, classes=("ant", *metadata.classes[1:]))
    with pytest.raises(ValueError, match=r"must have the classes of .*only one has \['0', 'ant'\]"):
        evaluate_exported(config, data, others, Knows([]))
    others = replace(metadata, input=replace(metadata.input, mean=(0.25,)))
    with pytest.raises(ValueError, match=r"images' mean=.*: must be \(0\.25,\), which the file"):
        evaluate_exported(config, data, others, Knows([]))


def test_a_network_of_its_own_precision_is_not_run_in_the_run_s(folder):
    class Sees:
        def run(self, inputs):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            assert product.dtype == torch.float32
            return {"logits": np.zeros((len(inputs["images"]), 10), np.float32)}

    config = load_config("fp.yaml", ["run.precision", "bfloat16"])
    data = load_data(config.data)
    evaluate_exported(config, data, classifier_metadata(config, data), Sees(), 8)
