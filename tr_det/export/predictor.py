"""Images in, detections or class probabilities out; NumPy, Pillow and one runtime are enough.

    predictor = Predictor("model.onnx")
    found = predictor("street.jpg")
    found.boxes, found.scores, found.names

Neither torch nor Detectron2 is loaded for an exported file. A network that is a torch module is
served by the same class: `Predictor.of` takes whatever runs arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tr_det.export import metadata as metadata_of
from tr_det.export.decode import Boxes, detect
from tr_det.export.graph import INPUT
from tr_det.export.images import Source, opened, prepared
from tr_det.export.metadata import Metadata, check_outputs
from tr_det.export.networks import Network, open_onnx


@dataclasses.dataclass(frozen=True)
class Detections:
    """What was found in an image, the best first.

    Attributes:
        boxes: (M, 4) float32 x0, y0, x1, y1 in px of the image.
        scores: (M,) float32.
        labels: (M,) int64.
        names: of the classes, one for each detection.
        category_ids: of the dataset, likewise.
        image_size: height and width of the image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_size: tuple[int, int]

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.scores)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return the detections as COCO's result files list them."""
        x0, y0, x1, y1 = self.boxes.astype(np.float64).T
        boxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).tolist()
        return [
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(self.category_ids, boxes, self.scores.tolist())
        ]


@dataclasses.dataclass(frozen=True)
class Classification:
    """What an image shows.

    Attributes:
        probabilities: (K,) float32, their sum is 1.
        names: of the classes.
        image_size: height and width of the image.
    """

    probabilities: np.ndarray
    names: tuple[str, ...]
    image_size: tuple[int, int]

    def best(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the names and probabilities of the likeliest classes, the likeliest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.names[label], float(self.probabilities[label])) for label in order]


class Predictor:
    """An exported detector or classifier.

    Args:
        model: path of an ONNX file of tools/export_model.py, or its bytes.
        runtime: "onnxruntime" or "openvino".
        threads: of the runtime; 0 for all cores.
        score_threshold: detections have higher scores; None: as the metadata say.

    Attributes:
        metadata: of the model.

    Raises:
        ValueError: no such file, a file that the runtime cannot read, one without metadata, a
            runtime that is not installed, or a threshold that is not from 0 to 1.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        runtime: str = "onnxruntime",
        threads: int = 0,
        score_threshold: float | None = None,
    ) -> None:
        backend, metadata = open_onnx(model, runtime, threads)
        try:
            self._set(backend, metadata, score_threshold)
        except ValueError as error:
            name = "model" if isinstance(model, bytes) else model
            raise ValueError(f"{name}: {error}") from None

    @classmethod
    def of(
        cls,
        backend: Network,
        metadata: Metadata | Mapping[str, Any],
        score_threshold: float | None = None,
    ) -> Predictor:
        """Return a predictor of any network that runs arrays.

        Args:
            backend: what runs it.
            metadata: of the network, as `tr_det.export.metadata` describes them.
            score_threshold: as for a file.
        """
        values = metadata.to_dict() if isinstance(metadata, Metadata) else metadata
        predictor = cls.__new__(cls)
        predictor._set(backend, metadata_of.read(values), score_threshold)
        return predictor

    def _set(self, backend: Network, metadata: Metadata, score_threshold: float | None) -> None:
        if metadata.task == "features":
            raise ValueError("metadata.task='features': there is nothing to predict")
        if score_threshold is not None:
            if not 0 <= score_threshold <= 1:
                raise ValueError(f"score_threshold={score_threshold}: must be from 0 to 1")
            if metadata.detector is not None:
                detector = dataclasses.replace(metadata.detector, score_threshold=score_threshold)
                metadata = dataclasses.replace(metadata, detector=detector)
        self._backend = backend
        self.metadata = metadata

    def __call__(self, image: Source) -> Detections | Classification:
        """Predict.

        Args:
            image: a file, an image of Pillow's, or an (H, W, 3) uint8 array in the order RGB.
                Turned as its EXIF data say; of several frames the first.

        Returns:
            `Detections` of a detector, `Classification` of a classifier.

        Raises:
            OSError: a file that is not there or not a whole image.
            ValueError: an array of another shape or type, or a network with other outputs than the
                metadata say.
        """
        network_input = prepared(opened(image), self.metadata.input)
        outputs = self._backend.run({INPUT: network_input.images})
        check_outputs({name: array.shape for name, array in outputs.items()}, self.metadata)
        size = network_input.original_size
        if self.metadata.detector is None:
            return self._classification(outputs["logits"][0], size)
        found = detect(outputs, self.metadata.detector, network_input.size, size)
        return self._detections(found, size)

    def _detections(self, found: Boxes, size: tuple[int, int]) -> Detections:
        names, ids = self.metadata.classes, self.metadata.category_ids
        return Detections(
            found.boxes,
            found.scores,
            found.labels,
            names=tuple(names[label] for label in found.labels),
            category_ids=tuple(ids[label] for label in found.labels),
            image_size=size,
        )

    def _classification(self, logits: np.ndarray, size: tuple[int, int]) -> Classification:
        shares = np.exp(logits - logits.max(), dtype=np.float64)
        probabilities = (shares / shares.sum()).astype(np.float32)
        names = self.metadata.classes or tuple(map(str, range(len(logits))))
        return Classification(probabilities, names, size)
