import pytest
import torch

from tr_det.digits.images import load_digit_images


def test_the_split_is_disjoint_stratified_and_complete():
    data = load_digit_images()
    assert len(data.train_labels) + len(data.test_labels) == 1797
    shares = torch.bincount(data.test_labels) / (
        torch.bincount(data.test_labels) + torch.bincount(data.train_labels)
    )
    torch.testing.assert_close(shares, torch.full((10,), 0.25), atol=0.01, rtol=0)
    train = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in train for image in data.test_images)


def test_training_images_are_normalised():
    images = load_digit_images().train_images
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=f"test_share={share}"):
        load_digit_images(share)
