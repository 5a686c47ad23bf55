"""A tiny dataset, and configs that train in seconds."""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from tr_det.detection.config.reading import load_config
from tr_det.digits.dataset import build_digit_scenes

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "configs/digits/Base-RetinaNet-R18-half.yaml"
TRAIN, VAL = "tiny_scenes_train", "tiny_scenes_val"


SMALL = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.QUANT.ENABLED": True,
    "MODEL.QUANT.CALIBRATION_BATCHES": 2,
    "DATASETS.TRAIN": (TRAIN,),
    "DATASETS.TEST": (VAL,),
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 64,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.OPTIMIZER": "SGDT",
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.TR.LOG_PERIOD": 1,
    "SEED": 3,
}
"""Eighth-width ResNet-18 on the tiny scenes, W4A4 SGDT."""


def register(name, json_file, images):
    """Register a COCO dataset, in the place of an earlier one of that name."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, str(json_file), str(images))


def register_tiny_scenes(folder):
    """Register 12 training and 4 validation images of 64 px."""
    scenes = build_digit_scenes(folder, num_train=12, num_val=4, image_size=64)
    register(TRAIN, scenes.train_json, scenes.train_images)
    register(VAL, scenes.val_json, scenes.val_images)


def tiny_config(output, *overrides):
    """Return an unfrozen config of `SMALL`, with unchecked ``KEY, value, ...`` overrides."""
    cfg = load_config(BASE, [word for pair in SMALL.items() for word in pair])
    cfg.merge_from_list(["OUTPUT_DIR", str(output), *overrides])
    return cfg
