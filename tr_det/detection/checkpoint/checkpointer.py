"""Detectron2's checkpointer, which refuses what does not fit the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from tr_det.detection.checkpoint.label import check_quantized_alike, labelled
from tr_det.detection.checkpoint.pickled import read_zoo_file
from tr_det.detection.checkpoint.torchvision_names import from_torchvision
from tr_det.detection.modeling.unfold import folded_norms
from tr_det.runtime.checkpoint_keys import is_quantizer_state, shortened
from tr_det.runtime.checkpoints import StrictCheckpointer


class QuantCheckpointer(StrictCheckpointer, DetectionCheckpointer):
    """Detectron2's checkpointer with the project's policy on keys.

    Besides its own it reads what Detectron2's does (model-zoo ``.pkl``, with Caffe2's names too),
    and torchvision's classifiers as they are, for the backbone (with ``allow_partial``).

    Args:
        model: the model, possibly wrapped by DDP.
        save_dir: folder of the checkpoints.
        allow_partial: log keys that do not fit, as Detectron2 does, instead of raising, as long as
            the checkpoint has at least half of the backbone's weights.
        **kwargs: as for ``DetectionCheckpointer``.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, allow_partial: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self.allow_partial = allow_partial

    def save(self, name: str, **kwargs: Any) -> None:
        """Write a checkpoint; a quantized one says so."""
        super().save(name, model=labelled(self.model.state_dict()), **kwargs)

    def _read(self, f: str) -> Any:
        return read_zoo_file(f) if f.endswith(".pkl") else super()._read(f)

    def _load_file(self, filename: str) -> Any:
        loaded = super()._load_file(filename)
        if not loaded.get("matching_heuristics"):
            backbone = from_torchvision(loaded["model"])
            if backbone is not None:
                self.logger.info("Reading a torchvision classifier's weights from %s", filename)
                loaded = {"model": backbone, "matching_heuristics": True}
        return loaded

    def _load_model(self, checkpoint: Any) -> Any:
        modules = dict(self.model.named_modules())
        trained = nn.modules.batchnorm._BatchNorm
        folded = folded_norms(checkpoint["model"])
        folded = [name for name in folded if isinstance(modules.get(name), trained)]
        if folded:
            self.logger.warning(
                "%s: %d batch norms have running statistics of 0 and 1, as models trained with "
                "frozen norms do. In training this model will compute something else than it was "
                "trained to: convert the checkpoint by tools/unfold_norms.py, or set "
                "MODEL.RESNETS.NORM FrozenBN",
                self._path,
                len(folded),
            )
        return super()._load_model(checkpoint)

    def _refuse(self, problems: Mapping[str, list[str]], incompatible: Any) -> None:
        if not self.allow_partial:
            super()._refuse(problems, incompatible)
        self._check_backbone(incompatible)
        check_quantized_alike(self._path, incompatible.unexpected_keys, self.model)
        Checkpointer._log_incompatible_keys(self, incompatible)

    def _hint(self, problems: Mapping[str, list[str]]) -> str:
        if self.resumed:
            return "resume with the config that the run was started with"
        unexpected = problems["unexpected"]
        if unexpected == sum(problems.values(), []) and all(map(is_quantizer_state, unexpected)):
            return "the checkpoint is quantized: set MODEL.QUANT.ENABLED True"
        return "MODEL.ALLOW_PARTIAL_WEIGHTS True loads the rest"

    def _check_backbone(self, incompatible: Any) -> None:
        """Refuse a checkpoint of another model: most of its backbone's weights do not fit."""
        not_loaded = {*incompatible.missing_keys, *(k for k, *_ in incompatible.incorrect_shapes)}
        names = dict(self.model.named_parameters())
        # Without FPN, which a checkpoint for classification lacks.
        wanted = [key for key in names if "bottom_up." in key and not is_quantizer_state(key)]
        wanted = wanted or [key for key in names if key.startswith("backbone.")]
        lacking = [key for key in wanted if key in not_loaded]
        if len(lacking) * 2 > len(wanted):
            raise ValueError(
                f"{self._path} does not fit the model: it lacks {len(lacking)} of the backbone's "
                f"{len(wanted)} weights ({shortened(lacking, 3)}), too many for "
                "MODEL.ALLOW_PARTIAL_WEIGHTS"
            )
