"""Checkpoints: which keys a quantized model may lack, whole files, and pruning."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from tr_det.runtime.files import write_text, written_aside

WEIGHT, INPUT, OUTPUT = QUANTIZER_STATE = (
    ".weight_quantizer.",
    ".input_quantizer.",
    ".output_scale.",
)
"""What a quantized layer adds to a state dict; a full-precision checkpoint lacks it."""

FINAL = "model_final"
"""Checkpoint of a run's end, as Detectron2 names it."""

AVERAGED = "model_averaged"
"""Checkpoint of the evaluated weights, where a method (an average) changes them for evaluation."""

LAST = "last_checkpoint"  # the name that fvcore reads


def is_quantizer_state(key: str) -> bool:
    """Return whether a state-dict key belongs to a quantizer or an output scale."""
    return any(kind in f".{key}" for kind in QUANTIZER_STATE)


def check_folder(flag: str, path: str) -> None:
    """Raise ValueError unless a file can be written at a path; to be called before the work."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ValueError(f"{flag}={path}: the folder {folder} does not exist")


def save_weights(model: nn.Module, path: str, **more: Any) -> None:
    """Write a model's weights as Detectron2 reads them, and ``more``; whole or not at all."""
    # Given a path, torch stores its name in the file: equal weights would give other bytes.
    with written_aside(path) as aside, aside.open("wb") as file:
        torch.save({"model": model.state_dict(), "__author__": "tr_det", **more}, file)


def last_checkpoint(folder: str | Path) -> str:
    """Return the path of the newest checkpoint in a run's folder, "" if there is none."""
    note = Path(folder) / LAST
    return str(note.with_name(note.read_text().strip())) if note.is_file() else ""


def evaluated_checkpoint(folder: str | Path) -> str:
    """Return the path of what a run's last evaluation saw, "" if there is no checkpoint."""
    averaged = Path(folder) / f"{AVERAGED}.pth"
    return str(averaged) if averaged.is_file() else last_checkpoint(folder)


def numbered_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that a run wrote before its end, oldest first."""
    numbers = {path: path.stem.removeprefix("model_") for path in folder.glob("model_*.pth")}
    return sorted((p for p in numbers if numbers[p].isdigit()), key=lambda p: int(numbers[p]))


class StrictCheckpointer(Checkpointer):
    """fvcore's checkpointer, strict about everything but new quantizer state.

    A full-precision checkpoint of the same model loads by name, as does one that quantizes only
    weights or only inputs; what it lacks is set at the first training forward. Any other missing,
    unexpected or mis-shaped key is an error. With another checkpointer as second base class the
    same holds for the files that it reads.
    """

    _path = ""
    _kinds: frozenset[str] = frozenset()

    def save(self, name: str, **kwargs: Any) -> None:
        """Write a checkpoint whole or not at all, and then note that it is the last one."""
        if not (self.save_dir and self.save_to_disk):
            return
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", file)
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        with written_aside(file) as aside, aside.open("wb") as opened:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, opened)
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the name of the newest checkpoint."""
        write_text(Path(self.save_dir) / LAST, last_filename_basename)

    def keep_newest(self, count: int) -> None:
        """Remove the checkpoints that have a number, but for the ``count`` highest; 0 keeps all.

        The unfinished file of a process that was killed while writing goes as well.
        """
        if not self.save_to_disk:
            return
        folder = Path(self.save_dir)
        for path in [*folder.glob(".model_*.pth"), *numbered_checkpoints(folder)[:-count]]:
            path.unlink()

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint; return what is in it besides model and checkpointables.

        Raises:
            ValueError: if it is not a checkpoint or does not fit the model, with the keys.
            FileNotFoundError: if there is no such file.
        """
        self._path = path
        try:
            extra: dict[str, Any] = super().load(path, *args, **kwargs)
        except AssertionError as error:
            raise FileNotFoundError(str(error)) from None
        return extra

    def _load_file(self, f: str) -> dict[str, Any]:
        try:
            loaded: Any = super()._load_file(f)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{f}: not a readable checkpoint ({reason})") from None
        except AttributeError:  # Detectron2 asks a .pkl file's content for its keys
            loaded = None
        found: Any = loaded
        if not (isinstance(loaded, Mapping) and "model" in loaded):
            found = {"model": loaded}  # what torch.save(model.state_dict()) writes
        state = found["model"]
        if not (isinstance(state, Mapping) and all(hasattr(v, "shape") for v in state.values())):
            raise ValueError(
                f"{f}: not a checkpoint of a model (it holds no dictionary of tensors)"
            )
        return dict(found)

    def _load_model(self, checkpoint: Any) -> Any:
        keys = [f".{key}" for key in checkpoint["model"]]
        self._kinds = frozenset(k for k in QUANTIZER_STATE if any(k in key for key in keys))
        try:
            return super()._load_model(checkpoint)
        except RuntimeError as error:  # another quantizer, or one of another bit-width, refuses
            # load_state_dict lists one problem per line under a heading.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            details = [line for line in lines if not line.startswith("Error(s)")] or lines
            more = f" (and {len(details) - 1} more of the kind)" if len(details) > 1 else ""
            raise ValueError(f"{self._path} does not fit the model: {details[0]}{more}") from None

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Log new quantizer state; refuse everything else."""
        mis_shaped = {key for key, *_ in incompatible.incorrect_shapes}
        absent = [key for key in incompatible.missing_keys if key not in mis_shaped]
        new = [key for key in absent if self._may_be_new(key)]
        if new:
            self.logger.info(
                "%d new keys, all of them quantizer state (scales are set at the first training "
                "forward): %s",
                len(new),
                shortened(new, 6),
            )
        problems = {
            "missing": [key for key in absent if key not in new and not _is_counter(key)],
            "unexpected": [key for key in incompatible.unexpected_keys if not _is_counter(key)],
            "of another shape": [
                f"{key} {tuple(saved)} for {tuple(own)}"
                for key, saved, own in incompatible.incorrect_shapes
            ],
        }
        if any(problems.values()):
            self._refuse(problems, incompatible)

    def _may_be_new(self, key: str) -> bool:
        """Return whether a checkpoint with the quantizer state of `_kinds` may lack a key.

        Weights or inputs may be quantized later than the others, but all at once; output scales may
        come with either.
        """
        if OUTPUT in f".{key}":
            return OUTPUT not in self._kinds and not {WEIGHT, INPUT} <= self._kinds
        return any(kind in f".{key}" and kind not in self._kinds for kind in (WEIGHT, INPUT))

    def _refuse(self, problems: Mapping[str, list[str]], incompatible: Any) -> None:
        """Raise ValueError with the keys of each problem."""
        listed = [
            f"{len(keys)} {kind} ({shortened(keys, 4)})" for kind, keys in problems.items() if keys
        ]
        hint = self._hint(problems)
        raise ValueError(
            f"{self._path} does not fit the model: keys {'; '.join(listed)}{hint and f'; {hint}'}"
        )

    def _hint(self, problems: Mapping[str, list[str]]) -> str:
        """Return what the user can do about keys that do not fit."""
        return ""


def shortened(keys: list[str], most: int) -> str:
    """Return the first ``most`` keys as text."""
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")


def _is_counter(key: str) -> bool:
    """Return whether a key is the counter that frozen batch norms lack."""
    return key.endswith(".num_batches_tracked")
