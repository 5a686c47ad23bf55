"""A tiny dataset and configs that train in seconds; loaded by path, as tests are not packages."""

from pathlib import Path

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from tr_det.detection import add_tr_det_config
from tr_det.digits.dataset import build_digit_scenes

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "configs/digits/Base-RetinaNet-R18-half.yaml"
TRAIN, VAL = "tiny_scenes_train", "tiny_scenes_val"


def register_tiny_scenes(folder):
    """Register 12 training and 4 validation images of 64 px."""
    scenes = build_digit_scenes(folder, num_train=12, num_val=4, image_size=64)
    for name, json_file, images in (
        (TRAIN, scenes.train_json, scenes.train_images),
        (VAL, scenes.val_json, scenes.val_images),
    ):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, {}, str(json_file), str(images))


def tiny_config(output, *overrides):
    """Return an unfrozen config: eighth-width ResNet-18 on the tiny scenes, W4A4 SGDT."""
    cfg = get_cfg()
    add_tr_det_config(cfg)
    cfg.merge_from_file(str(BASE))
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.QUANT.ENABLED = True
    cfg.MODEL.QUANT.CALIBRATION_BATCHES = 2
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN,), (VAL,)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64,), 64
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 64
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.OPTIMIZER = "SGDT"
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.MAX_ITER = 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SOLVER.TR.LOG_PERIOD = 1
    cfg.SEED = 3
    cfg.OUTPUT_DIR = str(output)
    cfg.merge_from_list(list(overrides))
    return cfg
