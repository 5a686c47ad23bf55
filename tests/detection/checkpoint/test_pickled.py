"""Pickled weights: arrays are read, nothing is run."""

import importlib
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.build import load_proposals_into_dataset

from tr_det.detection import env
from tr_det.detection.checkpoint.pickled import read_arrays, read_zoo_file


class Call:
    """What a pickle calls when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def write(tmp_path):
    """Return ``write(value, protocol) -> path`` of a pickle."""

    def write(value, protocol=None):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
        return str(tmp_path / "a.pkl")

    return write


def read(path):
    with open(path, "rb") as file:
        return read_arrays(file)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_containers_are_read(write, protocol):
    arrays = OrderedDict(
        a=np.arange(12, dtype="f4").reshape(3, 4),
        columns=np.asfortranarray(np.arange(6).reshape(2, 3)),
        big_endian=np.arange(3, dtype=">i4"),
        flags=np.array([True, False]),
        half=np.zeros((), "f2"),
        none=np.zeros((0, 3)),
        scalar=np.float32(0.1),
    )
    rest = {"n": [1, (2.5, None)], "b": b"\xff", "empty": b"", "s": {1, 2}}
    found = read(write({"arrays": arrays, **rest}, protocol))
    again = found.pop("arrays")
    assert found == rest
    assert list(again) == list(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(again[name], value)
        assert again[name].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
    assert torch.from_numpy(again["a"]).sum() == 66


def test_an_array_of_python_2_and_numpy_1_is_read(tmp_path):
    text = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nt"
        b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x00\\x00\\x80?\\x00\\x00\\xc0?'\ntb."
    )
    (tmp_path / "a.pkl").write_bytes(text)
    assert read(tmp_path / "a.pkl").tolist() == [1.0, 1.5]


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Call(os.system, "touch ran"), r"wants '(posix|nt)\.system', but only arrays"),
        (Call(eval, "open('ran', 'w')"), r"wants '(builtins|__builtin__)\.eval"),
        (Call(np.load, "ran"), r"wants 'numpy\.load'"),
        (torch.zeros(2), r"wants 'torch\._utils\._rebuild_tensor_v2"),
        (np.array([Call(os.system, "touch ran")]), "values of type 'O8'"),
        (np.zeros(2, "f4,f4"), "values of type 'V8'"),
        (np.array(["a"]), "values of type 'U1'"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:30],
)
def test_all_else_is_refused_by_name(write, tmp_path, monkeypatch, value, named, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match=named):
        read(write({"model": value}, protocol))
    assert not (tmp_path / "ran").exists()


def test_a_damaged_pickle_is_one_error(write, tmp_path):
    path = write({"model": {"w": np.arange(5.0)}}, 4)
    content = (tmp_path / "a.pkl").read_bytes()
    generator = np.random.default_rng(0)
    outcomes = []
    for attempt in range(300):
        damaged = bytearray(content[: generator.integers(1, len(content)) if attempt % 2 else None])
        damaged[generator.integers(len(damaged))] = generator.integers(256)
        (tmp_path / "a.pkl").write_bytes(damaged)
        try:
            outcomes.append(type(read_zoo_file(path)))
        except pickle.UnpicklingError as error:
            outcomes.append(str(error))
    assert dict in outcomes
    assert len({*outcomes}) > 2
    assert not [outcome for outcome in outcomes if "\n" in str(outcome)]


def test_a_file_of_either_zoo_is_told_from_the_other(write):
    weights = {"w": np.zeros(2)}
    assert read_zoo_file(write({"model": weights, "__author__": "A", "n": 1}))["n"] == 1
    blobs = {**weights, "w_momentum": np.ones(2), "weight_order": "1"}
    for content in (blobs, {"blobs": blobs, "cfg": "text"}):
        found = read_zoo_file(write(content))
        assert list(found["model"]) == ["w"]
        assert (found["__author__"], found["matching_heuristics"]) == ("Caffe2", True)
    for content in ([weights], {"blobs": [weights]}):
        assert isinstance(read_zoo_file(write(content))["model"], list)


def test_detectron2s_tools_refuse_it_by_the_environment_module(write, tmp_path, monkeypatch):
    """Checkpoints, and proposals from a file."""
    monkeypatch.chdir(tmp_path)
    for name in env.PICKLE_PLACES:
        place = importlib.import_module(name)
        monkeypatch.setattr(place, "pickle", place.pickle)
    env._unpickle_arrays_only()
    path = write({"model": Call(os.system, "touch ran"), "__author__": "A"})
    for read_it in (
        DetectionCheckpointer(torch.nn.Linear(1, 1)).load,
        lambda path: load_proposals_into_dataset([], path),
    ):
        with pytest.raises(pickle.UnpicklingError, match=r"wants '.*system'"):
            read_it(path)
    assert not (tmp_path / "ran").exists()
    model = torch.nn.Linear(2, 1)
    weights = {"weight": np.ones((1, 2), "f4"), "bias": np.zeros(1, "f4")}
    DetectionCheckpointer(model).load(write({"model": weights, "__author__": "A"}))
    assert model.weight.tolist() == [[1, 1]]
