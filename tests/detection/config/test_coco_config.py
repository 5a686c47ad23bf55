"""The paper's RetinaNet with ResNet-50 at 4 bits, trained for two iterations on small images."""

from pathlib import Path

from detectron2.config import get_cfg

from tr_det.core import quantized_layers
from tr_det.detection import QuantTrainer, add_tr_det_config

CONFIG = (
    Path(__file__).resolve().parents[3] / "configs/COCO-Detection/retinanet_R_50_FPN_qat_sgdt.yaml"
)


def test_r50_at_w4a4_trains_and_moves_codes(tiny, scenes, tmp_path) -> None:
    cfg = get_cfg()
    add_tr_det_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN"]
        + ["DATASETS.TRAIN", (tiny.TRAIN,), "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0]
        + ["INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2]
        + ["OUTPUT_DIR", str(tmp_path), "SEED", 0]
    )
    trainer = QuantTrainer(cfg)
    layers = dict(quantized_layers(trainer.model))
    trainer.train()
    assert len(layers) == 68
    metrics = trainer._trainer.optimizer.transition_metrics()
    assert len(metrics.names) == 68
    assert metrics.rate.max() > 0
    assert (metrics.talr > 0).all()
