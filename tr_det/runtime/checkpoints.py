"""Which keys of a checkpoint a quantized model may lack, and fvcore's checkpointer made strict."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from tr_det.runtime.files import write_text, written_aside

QUANTIZER_STATE = (".weight_quantizer.", ".input_quantizer.", ".output_scale.")
"""What a quantized layer adds to a state dict; a full-precision checkpoint lacks it."""

AVERAGED = "model_averaged"
"""Checkpoint of what evaluations saw, where a method (an average) changes the model for them."""

_PART = ".part"


def is_quantizer_state(key: str) -> bool:
    """Return whether a state-dict key belongs to a quantizer or an output scale."""
    return any(part in f".{key}" for part in QUANTIZER_STATE)


def is_harmless(key: str) -> bool:
    """Return whether a key may come and go: a counter that frozen batch norms lack."""
    return key.endswith(".num_batches_tracked")


def check_folder(flag: str, path: str) -> None:
    """Raise ValueError unless a file can be written at a path; to be called before the work."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ValueError(f"{flag}={path}: the folder {folder} does not exist")


def save_weights(model: nn.Module, path: str, **more: Any) -> None:
    """Write a model's weights as Detectron2 reads them, and more beside; whole or not at all."""
    with written_aside(path) as aside:
        torch.save({"model": model.state_dict(), "__author__": "tr_det", **more}, aside)


def numbered_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints that a run has written on its way, oldest first."""
    numbers = {path: path.stem.removeprefix("model_") for path in folder.glob("model_*.pth")}
    return sorted((p for p in numbers if numbers[p].isdigit()), key=lambda p: int(numbers[p]))


class StrictCheckpointer(Checkpointer):
    """fvcore's checkpointer, strict about everything but new quantizer state.

    A full-precision checkpoint of the same model loads by name, as does one that quantizes weights
    or inputs only; what it lacks is set at the first training forward. Any other missing,
    unexpected or mis-shaped key is an error.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write a checkpoint whole or not at all, and then note that it is the last one."""
        super().save(f"{name}{_PART}", **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Give a written checkpoint its name and note it."""
        name = last_filename_basename.replace(f"{_PART}.pth", ".pth")
        folder = Path(self.save_dir)
        os.replace(folder / last_filename_basename, folder / name)
        write_text(folder / "last_checkpoint", name)

    def keep_newest(self, count: int) -> None:
        """Remove the checkpoints that have a number, but for the ``count`` highest; 0 keeps all.

        What a process that was killed while writing has left goes as well.
        """
        if not self.save_to_disk:
            return
        folder = Path(self.save_dir)
        for part in folder.glob(f"model_*{_PART}.pth"):
            part.unlink()
        for path in numbered_checkpoints(folder)[:-count]:
            path.unlink()

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; return what is in it besides model and checkpointables.

        Raises:
            ValueError: if it is not a checkpoint or does not fit the model.
            FileNotFoundError: if there is no such file.
        """
        self._path = path
        try:
            extra: dict[str, Any] = super().load(path, checkpointables)
        except AssertionError as error:
            raise FileNotFoundError(str(error)) from None
        return extra

    def _load_file(self, f: str) -> dict[str, Any]:
        try:
            loaded = super()._load_file(f)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{f}: not a readable checkpoint ({reason})") from None
        # What torch.save(model.state_dict()) writes will do as well.
        return loaded if "model" in loaded else {"model": loaded}

    def _load_model(self, checkpoint: Any) -> Any:
        theirs = [f".{key}" for key in checkpoint["model"]]
        new = [part for part in QUANTIZER_STATE if not any(part in key for key in theirs)]
        try:
            found = super()._load_model(checkpoint)
        except RuntimeError as error:  # another quantizer, or one of another bit-width, refuses
            lines = [line.strip() for line in str(error).splitlines()]
            details = [line for line in lines if line and not line.startswith("Error(s)")]
            raise ValueError(f"{self._path} does not fit the model: {details[0]}") from None
        mis_shaped = {key for key, *_ in found.incorrect_shapes}
        missing = [
            key
            for key in found.missing_keys
            if not (any(part in f".{key}" for part in new) or is_harmless(key) or key in mis_shaped)
        ]
        unexpected = [key for key in found.unexpected_keys if not is_harmless(key)]
        shapes = [f"{key} {theirs} (here {ours})" for key, theirs, ours in found.incorrect_shapes]
        problems = {"missing": missing, "unexpected": unexpected, "of other shape": shapes}
        told = [
            f"{kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''} ({len(keys)} in all)"
            for kind, keys in problems.items()
            if keys
        ]
        if told:
            raise ValueError(f"{self._path} does not fit the model: keys {'; '.join(told)}")
        return found

    def _log_incompatible_keys(self, incompatible_keys: Any) -> None:
        """Say nothing of what `_load_model` has let pass: a line for each layer says no more."""
