"""Data that a test makes by itself."""

from tr_det.classification.data.images import Data


def given_data(pairs):
    """Return a list of (image, label) as data of three classes of 32 px."""
    return Data(
        load_train=lambda: pairs,
        load_plain=lambda: pairs,
        test=pairs,
        classes=("a", "b", "c"),
        channels=3,
        image_size=32,
        shorter_side=32,
        normalisation=((0.5,) * 3, (0.5,) * 3),
    )
