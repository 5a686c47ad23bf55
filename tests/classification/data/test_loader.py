import itertools

import pytest
import torch

from tr_det.classification.config.keys import DataConfig
from tr_det.classification.data.datasets import load_data
from tr_det.classification.data.loader import (
    check_batch_size,
    evaluation_batches,
    planned_batches,
    train_batches,
)


class Noisy(torch.utils.data.Dataset):
    """Items with a random number, as an augmentation would draw it."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.tensor([float(index), torch.rand(()).item()]), index


def take(count, start=0, **options):
    options = {"batch_size": 4, "seed": 3, **options}
    batches = itertools.islice(train_batches(Noisy(), start=start, **options), count)
    return [images.tolist() for images, _ in batches]


@pytest.mark.parametrize("start", [1, 2, 5])
def test_batches_from_any_start_are_those_of_the_whole_stream(start):
    assert take(8 - start, start) == take(8)[start:]


def test_an_epoch_shows_every_image_at_most_once_and_the_next_one_another_order():
    places = list(itertools.islice(planned_batches(12, 4, seed=0), 6))
    first, second = (
        [index for batch in part for _, index in batch] for part in (places[:3], places[3:])
    )
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert [number for batch in places for number, _ in batch] == list(range(24))


def test_processes_share_one_batch_out():
    whole = take(5)
    shares = [take(5, rank=rank, processes=2) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        assert [shares[0][number][0], shares[1][number][0]] == batch[:2]
        assert sorted(shares[0][number] + shares[1][number]) == sorted(batch)


@pytest.mark.parametrize(("batch_size", "processes"), [(12, 1), (3, 2)])
def test_a_batch_that_cannot_be_made_is_refused(batch_size, processes):
    with pytest.raises(ValueError, match=r"solver\.batch_size=.*at most 11.*number of processes"):
        check_batch_size(batch_size, 11, processes)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("hold_out", [0.0, 0.5])
def test_a_file_that_cannot_be_read_is_named(tmp_path, workers, hold_out):
    paths = [tmp_path / part / name / "bad.jpg" for part in ("train", "test") for name in "ab"]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no image")
    common = {"name": "folders", "root": str(tmp_path), "hold_out": hold_out}
    message = rf"{tmp_path}/t\w+/./bad.jpg: cannot be read \(cannot id"
    with pytest.raises(OSError, match=message):
        load_data(DataConfig(**common, image_size=8))  # reads all at once
    data = load_data(DataConfig(**common, image_size=96))
    for batches in (
        train_batches(data.train, batch_size=1, seed=0, workers=workers),
        evaluation_batches(data.test, batch_size=1, workers=workers),
    ):
        with pytest.raises(OSError, match=message):
            next(iter(batches))
