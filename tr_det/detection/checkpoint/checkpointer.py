"""A checkpointer that refuses what does not fit the model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from tr_det.detection.checkpoint.torchvision_names import from_torchvision
from tr_det.detection.modeling.unfold import look_folded
from tr_det.runtime.checkpoints import QUANTIZER_STATE, is_harmless, is_quantizer_state

RESUME_HINT = "resume with the config that the run was started with"
NOT_A_STATE = "not a checkpoint of a model (it holds no dictionary of tensors)"


class QuantCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, strict about everything but new quantizer state.

    Besides its own it reads what Detectron2's does (model-zoo ``.pkl``, with Caffe2's names too),
    and torchvision's classifiers as they are, for the backbone (with ``allow_partial``).

    A full-precision checkpoint of the same model loads by name; quantizer state that it lacks is
    logged and set at the first training forward. Any other missing, unexpected or mis-shaped key
    is an error.

    Args:
        model: the model, possibly wrapped by DDP.
        save_dir: folder of the checkpoints.
        allow_partial: log such keys, as Detectron2 does, instead of raising, as long as the
            checkpoint has at least half of the backbone's weights.
        **kwargs: as for ``DetectionCheckpointer``.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, allow_partial: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self.allow_partial = allow_partial
        self._path = ""
        self._resumes = False
        self._is_quantized = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the run's last checkpoint if there is one and ``resume``, else ``path``."""
        self._resumes = resume and self.has_checkpoint()
        if resume and not self._resumes:
            self.logger.info("No checkpoint in %s to resume: starting anew", self.save_dir)
        found: dict[str, Any] = super().resume_or_load(path, resume=resume)
        return found

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint.

        Raises:
            ValueError: if it does not fit the model, with the keys.
            FileNotFoundError: if there is no such file.
        """
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except AssertionError as error:
            raise FileNotFoundError(str(error)) from None

    def _load_file(self, filename: str) -> Any:
        try:
            loaded = super()._load_file(filename)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{filename}: not a readable checkpoint ({reason})") from None
        except AttributeError:  # Detectron2 asks it for its keys
            raise ValueError(f"{filename}: {NOT_A_STATE}") from None
        state = loaded.get("model")
        if not (isinstance(state, Mapping) and all(hasattr(v, "shape") for v in state.values())):
            raise ValueError(f"{filename}: {NOT_A_STATE}")
        if not loaded.get("matching_heuristics"):
            backbone = from_torchvision(loaded["model"])
            if backbone is not None:
                self.logger.info("Reading a torchvision classifier's weights from %s", filename)
                loaded = {"model": backbone, "matching_heuristics": True}
        return loaded

    def _load_model(self, checkpoint: Any) -> Any:
        self._is_quantized = any(map(is_quantizer_state, checkpoint["model"]))
        self._warn_of_folded_norms(checkpoint["model"])
        try:
            return super()._load_model(checkpoint)
        except RuntimeError as error:
            # load_state_dict lists one problem per line under a heading
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            details = [line for line in lines if not line.startswith("Error(s)")] or lines
            more = f" (and {len(details) - 1} more of the kind)" if len(details) > 1 else ""
            raise ValueError(f"{self._path}: {details[0]}{more}") from None

    def _warn_of_folded_norms(self, state: Any) -> None:
        modules = dict(self.model.named_modules())
        trained = nn.modules.batchnorm._BatchNorm
        folded = [name for name in look_folded(state) if isinstance(modules.get(name), trained)]
        if folded:
            self.logger.warning(
                "%s: %d batch norms have running statistics of 0 and 1, as models trained with "
                "frozen norms do. In training this model will compute something else than it was "
                "trained to: convert the checkpoint by tools/unfold_norms.py, or set "
                "MODEL.RESNETS.NORM FrozenBN",
                self._path,
                len(folded),
            )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        absent = [key for key in incompatible.missing_keys if not is_harmless(key)]
        # Quantizer state is new only to a checkpoint that has none at all.
        new = [key for key in absent if is_quantizer_state(key) and not self._is_quantized]
        missing = [key for key in absent if key not in new]
        if new:
            layers = sorted(
                {key.split(part)[0] for key in new for part in QUANTIZER_STATE if part in key}
            )
            self.logger.info(
                "%d new keys, all of them quantizer state of %d layers (scales are set at the "
                "first training forward): %s",
                len(new),
                len(layers),
                _shortened(new, 6),
            )
        unexpected = [key for key in incompatible.unexpected_keys if not is_harmless(key)]
        shapes = [
            f"{key} {tuple(theirs)} for {tuple(ours)}"
            for key, theirs, ours in incompatible.incorrect_shapes
        ]
        if not (missing or unexpected or shapes):
            return
        if self.allow_partial:
            self._check_backbone({*absent, *(key for key, _, _ in incompatible.incorrect_shapes)})
            super()._log_incompatible_keys(incompatible)
            return
        problems = [
            f"{len(keys)} {kind} ({_shortened(keys, 4)})"
            for kind, keys in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
            )
            if keys
        ]
        if self._resumes:
            hint = RESUME_HINT
        elif unexpected and all(map(is_quantizer_state, unexpected)) and not (missing or shapes):
            hint = "the checkpoint is quantized: set MODEL.QUANT.ENABLED True"
        else:
            hint = "MODEL.ALLOW_PARTIAL_WEIGHTS True loads the rest"
        raise ValueError(f"{self._path} does not fit the model: keys {'; '.join(problems)}; {hint}")

    def _check_backbone(self, not_loaded: set[str]) -> None:
        """Refuse a checkpoint of another model: most of its backbone's weights do not fit."""
        names = dict(self.model.named_parameters())
        # Without FPN, which a checkpoint for classification lacks.
        wanted = [key for key in names if "bottom_up." in key and not is_quantizer_state(key)]
        wanted = wanted or [key for key in names if key.startswith("backbone.")]
        lacking = [key for key in wanted if key in not_loaded]
        if len(lacking) * 2 > len(wanted):
            raise ValueError(
                f"{self._path} does not fit the model: it lacks {len(lacking)} of the backbone's "
                f"{len(wanted)} weights ({_shortened(lacking, 3)}), too many for "
                "MODEL.ALLOW_PARTIAL_WEIGHTS"
            )


def _shortened(keys: list[str], most: int) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
