"""Weights in Python's pickle format, as the model zoos have them: arrays are read, nothing is run.

A pickle names functions and calls them while it is read. Those that arrays and plain containers
need are few; a file that names another one is refused.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np


class _DType:
    """A type of numbers, as a pickle makes it: by its name, and then by its byte order."""

    def __init__(self, name: str, *flags: Any) -> None:
        self.made = np.dtype(str(name))
        if self.made.kind not in "biuf":
            raise pickle.UnpicklingError(
                f"it holds values of type {name!r}, but only numbers are read"
            )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.made = self.made.newbyteorder(state[1])


class _Array(np.ndarray):  # type: ignore[type-arg]
    """An array, as a pickle makes it: an empty one, and then shape, type, order and content."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, dtype, *rest = state
        super().__setstate__((version, shape, dtype.made, *rest))


def _reconstruct(*_: Any) -> _Array:
    return _Array(0)


def _scalar(dtype: _DType, content: bytes | str) -> Any:
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype.made)[0]


def _frombuffer(content: Any, dtype: _DType, shape: Any, order: Any) -> Any:
    return np.frombuffer(bytes(content), dtype.made).reshape(shape, order=order).copy(order="K")


def _encode(text: str, encoding: str) -> bytes:
    """Return the bytes that Python 3 writes as text for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes as {encoding!r}, but only latin1 is read")
    return text.encode("latin1")


_ARRAYS = {"_reconstruct": _reconstruct, "scalar": _scalar, "_frombuffer": _frombuffer}
_KINDS = (bytes, bytearray, set)
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,  # what `_reconstruct` is to make
    ("numpy", "dtype"): _DType,
    **{  # of NumPy 1 and 2
        (f"numpy.{core}.{module}", name): make
        for core in ("core", "_core")
        for module in ("multiarray", "numeric")
        for name, make in _ARRAYS.items()
    },
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    **{  # of Python 2 and 3
        (module, kind.__name__): kind for module in ("__builtin__", "builtins") for kind in _KINDS
    },
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, if arrays need it."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            wanted = f"{module}.{name}"
            reason = "but only arrays and plain containers are read; save other models as .pth"
            raise pickle.UnpicklingError(f"it wants {wanted!r}, {reason}") from None


def read_arrays(file: BinaryIO) -> Any:
    """Return what a pickle holds: arrays of numbers, in plain containers.

    Raises:
        pickle.UnpicklingError: it holds something else, or is damaged.
    """
    try:
        return _ArraysOnly(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(" ".join(str(error).split())) from None
    except Exception:  # what a damaged pickle raises depends on its bytes
        raise pickle.UnpicklingError("damaged, or no pickle") from None


def read_zoo_file(path: str) -> dict[str, Any]:
    """Return the weights of a ``.pkl`` of Detectron2's or Caffe2's zoo as Detectron2 takes them.

    Caffe2's files have weights and momenta by its own names, which are matched to the model's. What
    is neither is returned as the model's weights, which it is not.

    Raises:
        pickle.UnpicklingError: as for `read_arrays`.
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        found = read_arrays(file)
    if isinstance(found, dict) and {"model", "__author__"} <= found.keys():
        return found
    blobs = found.get("blobs", found) if isinstance(found, dict) else found
    if not isinstance(blobs, dict):
        return {"model": blobs}
    extra = "weight_order"  # a text that some files have
    weights = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum") and k != extra}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
