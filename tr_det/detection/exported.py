"""COCO evaluation of an exported detector, as the trained one is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from tr_det.detection.engine.trainer import QuantTrainer
from tr_det.export.decode import detect
from tr_det.export.metadata import Metadata
from tr_det.export.networks import Network


class ExportedDetector(nn.Module):
    """An exported network in the place of the detector that it was made from.

    Args:
        network: the dense part.
        metadata: of the file; normalises images, and makes boxes of what the network returns.
    """

    def __init__(self, network: Network, metadata: Metadata) -> None:
        super().__init__()
        assert metadata.detector is not None
        self._network, self._detector = network, metadata.detector
        self._divisor = metadata.input.divisor
        self._mean, self._std = (
            torch.tensor(values).reshape(-1, 1, 1)
            for values in (metadata.input.mean, metadata.input.std)
        )

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Return the detections of images, as Detectron2's models do in evaluation."""
        pixels: list[Tensor] = [(x["image"] - self._mean) / self._std for x in batched_inputs]
        images = ImageList.from_tensors(pixels, self._divisor)
        outputs = self._network.run({"images": images.tensor.numpy()})
        found = []
        for index, (one, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            original = (one.get("height", size[0]), one.get("width", size[1]))
            boxes = detect(outputs, self._detector, tuple(size), original, index)
            instances = Instances(original)
            instances.pred_boxes = Boxes(torch.from_numpy(boxes.boxes))
            instances.scores = torch.from_numpy(boxes.scores)
            instances.pred_classes = torch.from_numpy(boxes.labels)
            found.append({"instances": instances})
        return found


def evaluate_exported(
    cfg: CfgNode, detector: nn.Module, folder: Path, limit: int = 0
) -> dict[str, Any]:
    """Return COCO's results by test set.

    Args:
        cfg: of the run; its test sets.
        detector: in Detectron2's interface.
        folder: for the detections.
        limit: number of images; 0 for all.
    """
    results: dict[str, Any] = {}
    for name in cfg.DATASETS.TEST:
        loader = QuantTrainer.build_test_loader(cfg, name)
        own = folder / name if len(cfg.DATASETS.TEST) > 1 else folder
        evaluator = QuantTrainer.build_evaluator(cfg, name, str(own))
        if limit:
            loader = _First(loader, limit)
            complete = evaluator.evaluate  # would count the images left out as missed
            evaluator.evaluate = lambda complete=complete, loader=loader: complete(loader.ids)
        results[name] = inference_on_dataset(detector, loader, evaluator)
        print_csv_format(results[name])
    return results


class _First:
    """The first batches of a loader.

    Attributes:
        ids: of the images that were given.
    """

    def __init__(self, loader: Any, count: int) -> None:
        self._loader, self._count = loader, min(count, len(loader))
        self.ids: list[int] = []

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for number, batch in enumerate(self._loader):
            if number == self._count:
                return
            self.ids += [image["image_id"] for image in batch]
            yield batch
