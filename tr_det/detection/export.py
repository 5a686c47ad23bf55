"""A RetinaNet's dense part as one network, and what an exported file must say about the rest."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from tr_det.core.errors import check_among
from tr_det.detection.checkpoint.checkpointer import QuantCheckpointer
from tr_det.detection.config.reading import load_config_for_cpu
from tr_det.detection.data.datasets import check_datasets, named_dataset_errors
from tr_det.detection.engine.trainer import QuantTrainer
from tr_det.export.metadata import COLORS, DetectorSpec, InputSpec, Metadata, ShortestEdge
from tr_det.export.subject import (
    Subject,
    checkpoint_entry,
    require_checkpoint,
    require_quantized,
    require_scales,
)


class DetectorNet(nn.Module):
    """Backbone, FPN and head: images -> logits and deltas of each level.

    Layers keep the names that they have in the detector.

    Args:
        model: Detectron2's ``RetinaNet`` or `QuantRetinaNet`.

    Attributes:
        output_names: of what `forward` returns.

    Raises:
        ValueError: another architecture.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, RetinaNet):
            raise ValueError(
                f"MODEL.META_ARCHITECTURE={type(model).__name__}: must be a RetinaNet to be "
                "exported"
            )
        self.backbone, self.head = model.backbone, model.head
        self.levels: list[str] = list(model.head_in_features)
        self.output_names = [f"{kind}.{p}" for kind in ("logits", "deltas") for p in self.levels]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return logits (N, A * K, H, W) of all levels, then deltas (N, A * 4, H, W).

        Args:
            images: (N, C, H, W), normalized; sides are multiples of the backbone's divisor.
        """
        features = self.backbone(images)
        logits, deltas = self.head([features[name] for name in self.levels])
        return (*logits, *deltas)


def input_spec(cfg: CfgNode, model: Any) -> InputSpec:
    """Return how an image becomes the detector's input, as Detectron2's predictor does it.

    Raises:
        ValueError: a format that only Detectron2 knows.
    """
    check_among("INPUT.FORMAT", cfg.INPUT.FORMAT, COLORS)
    return InputSpec(
        channels=len(model.pixel_mean),
        color=cfg.INPUT.FORMAT,
        scale=1.0,
        mean=tuple(model.pixel_mean.flatten().tolist()),
        std=tuple(model.pixel_std.flatten().tolist()),
        divisor=max(1, model.backbone.size_divisibility),
        resize=ShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
    )


def detector_spec(model: Any) -> DetectorSpec:
    """Return how the detector's outputs become boxes."""
    anchors, transform = model.anchor_generator, model.box2box_transform
    return DetectorSpec(
        levels=tuple(model.head_in_features),
        strides=tuple(anchors.strides),
        cell_anchors=tuple(tuple(map(tuple, cell.tolist())) for cell in anchors.cell_anchors),
        anchor_offset=float(anchors.offset),
        box_weights=tuple(float(weight) for weight in transform.weights),
        scale_clamp=float(transform.scale_clamp),
        score_threshold=float(model.test_score_thresh),
        candidates_per_level=int(model.test_topk_candidates),
        nms_threshold=float(model.test_nms_thresh),
        detections_per_image=int(model.max_detections_per_image),
    )


def detector_metadata(cfg: CfgNode, model: Any) -> Metadata:
    """Return what a file or a predictor must know of a detector, but for its checkpoint."""
    return Metadata(
        format="torch",
        task="detection",
        input=input_spec(cfg, model),
        classes=class_names(cfg),
        category_ids=category_ids(cfg),
        detector=detector_spec(model),
        config=cfg.dump(),
    )


def class_names(cfg: CfgNode) -> tuple[str, ...]:
    """Return the names of the test set's classes, or their numbers where it names none."""
    count = cfg.MODEL.RETINANET.NUM_CLASSES
    for metadata in _catalogs(cfg):
        names = metadata.get("thing_classes")
        if names and len(names) == count:
            return tuple(names)
    return tuple(str(number) for number in range(count))


def category_ids(cfg: CfgNode) -> tuple[int, ...]:
    """Return the test set's own numbers of the classes; () where it is not known."""
    for metadata in _catalogs(cfg):
        by_id = metadata.get("thing_dataset_id_to_contiguous_id")
        if by_id and len(by_id) == cfg.MODEL.RETINANET.NUM_CLASSES:
            return tuple(sorted(by_id, key=by_id.__getitem__))
    return ()


def _catalogs(cfg: CfgNode) -> Iterator[Any]:
    """Yield what Detectron2 knows of the datasets; of registered files it knows after loading."""
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name)
        file = metadata.get("json_file", "")
        unread = not metadata.get("thing_dataset_id_to_contiguous_id")
        if unread and name in DatasetCatalog.list() and os.path.isfile(file):
            with named_dataset_errors([name]):
                DatasetCatalog.get(name)
        yield metadata


def network_inputs(model: Any, loader: Iterable[list[dict[str, Any]]]) -> Iterable[Tensor]:
    """Yield the batches of a loader as the detector's network gets them."""
    for batch in loader:
        with torch.no_grad():
            yield model.preprocess_image(batch).tensor


def detector_subject(
    config_file: str | Path, pairs: Sequence[str] = (), checkpoint: str = ""
) -> Subject:
    """Return a trained detector with what its file says about it.

    Args:
        config_file: YAML of the run.
        pairs: ``KEY VALUE`` pairs over it.
        checkpoint: "" takes ``MODEL.WEIGHTS``.

    Raises:
        ValueError: what is wrong with the config or the checkpoint, a model that is not quantized
            or has no scales, or an architecture that cannot be exported.
    """
    cfg = load_config_for_cpu(config_file, pairs)
    place = "--checkpoint" if checkpoint else "MODEL.WEIGHTS"
    weights = checkpoint or cfg.MODEL.WEIGHTS
    if "://" in weights:
        weights = PathManager.get_local_path(weights)
    require_checkpoint(weights, place)
    model, net = fresh_detector(cfg)
    require_quantized(net, f"MODEL.QUANT.ENABLED={cfg.MODEL.QUANT.ENABLED}")
    QuantCheckpointer(model).load(weights)
    require_scales(net, weights)
    return Subject(
        model=model,
        net=net,
        names=tuple(net.output_names),
        example=_example(cfg, model),
        metadata=replace(detector_metadata(cfg, model), checkpoint=checkpoint_entry(weights)),
        images=lambda count: itertools.islice(network_inputs(model, _test_loader(cfg)), count),
        fresh=lambda: fresh_detector(cfg),
    )


def fresh_detector(cfg: CfgNode) -> tuple[nn.Module, DetectorNet]:
    """Return a detector without trained weights, in evaluation, and its dense part."""
    model = QuantTrainer.build_model(cfg).eval()
    return model, DetectorNet(model).eval()


def _example(cfg: CfgNode, model: Any) -> Tensor:
    """Return a batch to record the network with, of the size of the test images."""
    divisor = max(1, model.backbone.size_divisibility)
    coarsest = max(model.anchor_generator.strides)
    side = -(-cfg.INPUT.MIN_SIZE_TEST // divisor) * divisor or 4 * coarsest
    # Unequal, so that no recorder takes them for one number; but a map of one pixel is a square.
    other = side + divisor if side > coarsest else side
    return torch.zeros(2, len(model.pixel_mean), side, other)


def _test_loader(cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
    """Return the images of the first test set, one by one."""
    check_datasets(cfg, ("TEST",))
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST=(): must name a dataset, whose images are compared")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # for a few images
    loader: Iterable[list[dict[str, Any]]]
    loader = QuantTrainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    return loader
