"""Checkpoints: written whole, loaded strictly, and pruned."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from tr_det.core.errors import check
from tr_det.core.nn.signs import take_saved_signs
from tr_det.runtime.checkpoint_keys import (
    LABEL,
    listed,
    new_keys,
    quantizer_kinds,
    shortened,
    wrong_keys,
)
from tr_det.runtime.damage import check_optimizer_state, check_whole, faults, unreadable
from tr_det.runtime.files import write_text, written_aside
from tr_det.runtime.processes import from_first, rank
from tr_det.runtime.run_folder import LAST, last_checkpoint, numbered_checkpoints


def check_start(key: str, weights: str) -> None:
    """Raise ConfigError, before anything is built, if what a run starts from is not there.

    Args:
        key: of the config.
        weights: file, "" for random ones, or an address, which is not looked up.
    """
    there = not weights or "://" in weights or os.path.isfile(weights)
    allowed = "a file that exists; train the config that writes it, or name another checkpoint"
    check(key, weights, there, allowed)


def save_weights(model: nn.Module, path: str, /, **more: Any) -> None:
    """Write a model's weights as Detectron2 reads them, and ``more``; whole or not at all."""
    # Given a path, torch stores its name in the file: equal weights would give other bytes.
    with written_aside(path) as aside, aside.open("wb") as file:
        torch.save({"model": model.state_dict(), "__author__": "tr_det", **more}, file)


class StrictCheckpointer(Checkpointer):
    """fvcore's checkpointer, strict about everything but new quantizer state.

    A full-precision checkpoint of the same model loads by name, as does one that quantizes only
    weights or only inputs; what it lacks is set at the first training forward. Any other missing,
    unexpected or mis-shaped key is an error. With another checkpointer as second base class the
    same holds for the files that it reads.

    Args:
        model: the model.
        save_dir: folder of the checkpoints.
        keep: how many of the checkpoints that have a number are kept, the last ones written; 0
            keeps all. What was there before and is more than that has been kept for a reason, and
            stays.
        **kwargs: as for fvcore's.

    Attributes:
        resumed: the checkpoint that the run goes on from, "" for a new run.
    """

    _path = ""
    _kinds: frozenset[str] = frozenset()
    _parts: Iterable[str] = ()

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, keep: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self.keep = keep
        self._kept: set[Path] | None = None
        self.resumed = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write a checkpoint whole or not at all, and note that it is the last one.

        Only then old ones are removed.
        """
        if not (self.save_dir and self.save_to_disk):
            return
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", file)
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        with written_aside(file) as aside, aside.open("wb") as opened:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, opened)
        self.tag_last_checkpoint(file.name)
        self._remove_old()

    def save_resumed_as(self, name: str) -> None:
        """Copy the checkpoint that the run goes on from, if it has another name."""
        file = Path(self.save_dir) / f"{name}.pth"
        if self.save_to_disk and file != Path(self.resumed):
            with written_aside(file) as aside:
                shutil.copyfile(self.resumed, aside)
            self.tag_last_checkpoint(file.name)
            self._remove_old()

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the name of the newest checkpoint."""
        write_text(Path(self.save_dir) / LAST, last_filename_basename)

    def _remove_old(self) -> None:
        """Remove checkpoints that have a number, but for the ``keep`` ones written last.

        The unfinished file of a process that was killed while writing goes as well.
        """
        folder = Path(self.save_dir)
        found = sorted(numbered_checkpoints(folder), key=lambda path: path.stat().st_mtime_ns)
        if self._kept is None:
            # A stop between a save and this leaves one too many; more are no leftovers of ours.
            self._kept = set(found[:-1]) if len(found) > self.keep + 2 else set()
            if self.keep:
                self.logger.info("Of checkpoints with a number the last %d are kept", self.keep)
        own = [path for path in found if path not in self._kept]
        for path in [*folder.glob(".model_*.pth"), *(own[: -self.keep] if self.keep else [])]:
            path.unlink()

    def has_checkpoint(self) -> bool:
        """Return whether the folder has a whole checkpoint of a run."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Return the newest whole checkpoint, "" if there is none."""
        return last_checkpoint(self.save_dir)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the run's last checkpoint if there is one and ``resume``, else ``path``."""
        # One answer for all: a folder that machines do not share has it on the first one only.
        self.resumed = from_first(self.get_checkpoint_file() if resume and rank() == 0 else "")
        if self.resumed:
            return self.load(self.resumed)
        if resume:
            message = "No checkpoint in %s to resume: starting from the beginning"
            self.logger.info(message, self.save_dir)
        return self.load(path, checkpointables=[])

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; return what is in it besides model and checkpointables.

        Raises:
            ValueError: if it is damaged, does not fit the model or lacks a part, with the keys.
            FileNotFoundError: if there is no such file.
        """
        self._path = path
        self._parts = self.checkpointables if checkpointables is None else checkpointables
        try:
            found: dict[str, Any] = super().load(path, checkpointables=[])
        except AssertionError as error:
            raise FileNotFoundError(str(error)) from None
        for part in self._parts if path else ():
            try:
                self._load_part(self.checkpointables[part], found.pop(part))
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                reason = f"{part}: {type(error).__name__}: {error}"
                raise ValueError(
                    f"{path}: the state of the run does not fit or is damaged ({reason})"
                ) from error
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        return found

    def _load_part(self, part: Any, state: Any) -> None:
        part.load_state_dict(state)
        if isinstance(part, torch.optim.Optimizer):
            check_optimizer_state(part)

    def _read(self, f: str) -> Any:
        """Return what a file holds, in whatever way; a subclass may read other formats."""
        return super()._load_file(f)

    def _load_file(self, f: str) -> dict[str, Any]:
        try:
            check_whole(f)
            loaded = self._read(f)
        except (AttributeError, TypeError):  # readers ask the content for its keys
            loaded = None
        except Exception as error:
            raise unreadable(f, error) from None
        found: Any = loaded
        if not (isinstance(loaded, Mapping) and "model" in loaded):
            found = {"model": loaded}  # what torch.save(model.state_dict()) writes
        state = found["model"]
        if isinstance(state, Mapping) and LABEL in state:
            raise ValueError(f"{f}: of a quantized detector; must be a checkpoint of this model")
        if not (isinstance(state, Mapping) and all(hasattr(v, "shape") for v in state.values())):
            raise ValueError(
                f"{f}: not a checkpoint of a model (it holds no dictionary of tensors)"
            )
        lacking = [part for part in self._parts if part not in found]
        if lacking:
            raise ValueError(
                f"{f}: weights without the state of a run to go on from ({', '.join(lacking)}); "
                "start a new run from them instead of resuming"
            )
        return dict(found)

    def _load_model(self, checkpoint: Any) -> Any:
        take_saved_signs(self.model, checkpoint["model"])
        self._kinds = quantizer_kinds(checkpoint["model"])
        hook = self.model.register_load_state_dict_pre_hook(self._check_values)
        try:
            return super()._load_model(checkpoint)
        except RuntimeError as error:  # another quantizer, or one of another bit-width, refuses
            # load_state_dict lists one problem per line under a heading.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            details = [line for line in lines if not line.startswith("Error(s)")] or lines
            more = f" (and {len(details) - 1} more of the kind)" if len(details) > 1 else ""
            raise ValueError(f"{self._path} does not fit the model: {details[0]}{more}") from None
        finally:
            hook.remove()

    def _check_values(self, model: nn.Module, state: Any, prefix: str, *args: Any) -> None:
        """Add what is wrong with values to the errors of ``load_state_dict``."""
        *_, errors = args
        errors.extend(faults(state, model.state_dict(), same_dtype=bool(self._parts)))

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Log new quantizer state; refuse everything else."""
        new = new_keys(incompatible, self._kinds)
        if new:
            self.logger.info(
                "%d new keys, all of them quantizer state (scales are set at the first training "
                "forward): %s",
                len(new),
                shortened(new, 6),
            )
        problems = wrong_keys(incompatible, self._kinds)
        if any(problems.values()):
            self._refuse(problems, incompatible)

    def _refuse(self, problems: Mapping[str, list[str]], incompatible: Any) -> None:
        """Raise ValueError with the keys of each problem."""
        hint = self._hint(problems)
        raise ValueError(
            f"{self._path} does not fit the model: keys {listed(problems)}{hint and f'; {hint}'}"
        )

    def _hint(self, problems: Mapping[str, list[str]]) -> str:
        """Return what the user can do about keys that do not fit."""
        return ""
