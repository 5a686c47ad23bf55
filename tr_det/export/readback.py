"""Whether a packed or a torch file, read back, is the model that it was written from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tr_det.core import quantized_layers
from tr_det.export.subject import Subject


class Readback(NamedTuple):
    """What was found.

    Attributes:
        images: how many were run.
        codes: of weights that were compared.
        failures: what differs, one line each.
    """

    images: int
    codes: int
    failures: list[str]


def read_back(subject: Subject, form: str, path: Path, images: Sequence[Tensor]) -> Readback:
    """Compare a file with the model.

    Args:
        subject: what was exported.
        form: "packed" or "torch".
        path: of the file.
        images: as the network gets them.
    """
    codes, failures = 0, list[str]()
    try:
        if form == "packed":
            net, codes, failures = _loaded(subject, path)
        else:
            from tr_det.export.simulation import read_simulation

            net, _ = read_simulation(path)
    except ValueError as error:  # it has just been written: its content is wrong
        return Readback(0, 0, [str(error)])
    failures += _differences(subject, net, images)
    return Readback(len(images), codes, failures)


def _loaded(subject: Subject, path: Path) -> tuple[nn.Module, int, list[str]]:
    """Return a packed network, how many codes of its weights were compared, and what differs."""
    from tr_det.export.packed import load_packed

    model, net = subject.fresh()
    load_packed(model, path)
    codes, failures, read = 0, [], dict(quantized_layers(model))
    for name, layer in quantized_layers(subject.model):
        if layer.weight_quantizer is not None:
            own, theirs = _codes(layer), _codes(read[name])
            codes += own.numel()
            wrong = int((own != theirs).sum())
            if wrong:
                failures.append(f"{name}: {wrong} of {own.numel()} codes wrong")
    return net, codes, failures


def _outputs(net: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = net(images)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _codes(layer: nn.Module) -> Tensor:
    codes: Tensor = layer.weight_quantizer.codes(layer.weight)  # type: ignore[operator, union-attr]
    return codes


def _differences(subject: Subject, net: nn.Module, images: Sequence[Tensor]) -> Iterator[str]:
    largest: dict[str, float] = {}
    for image in images:
        try:
            theirs = _outputs(net, image)
        except AssertionError as error:  # of a guard in a program of torch.export
            yield f"an input of {tuple(image.shape)} is refused: {error}"
            continue
        pairs = zip(_outputs(subject.net, image), theirs, strict=True)
        for name, (own, read) in zip(subject.names, pairs, strict=True):
            if not torch.equal(own, read):
                found = float((own - read).abs().max())
                largest[name] = max(largest.get(name, 0.0), found)
    for name, difference in largest.items():
        yield f"output {name} differs by up to {difference:.1e}"
