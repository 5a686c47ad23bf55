import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from tr_det.core import ConfigError, quantized_layers
from tr_det.detection import QuantTrainer
from tr_det.detection.config.reading import load_config
from tr_det.runtime.metrics import read_records


def trained(cfg, until=None):
    """Train to the end, or stop as an interruption would after ``until`` iterations."""
    trainer = QuantTrainer(cfg)
    trainer.resume_or_load(resume=True)
    if until is not None:
        trainer.max_iter = until
    trainer.train()
    return trainer


@pytest.fixture
def quiet_config(make_config):
    """Config without evaluation at the end."""

    def make(*overrides):
        cfg = make_config(*overrides)
        cfg.DATASETS.TEST = ()
        return cfg

    return make


def test_tr_curves_reach_metrics_json_and_tensorboard(quiet_config, tmp_path):
    trainer = trained(quiet_config())
    rows = read_records(tmp_path / "out/metrics.json")
    rows = [row for row in rows if "tr/target" in row]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    targets = [row["tr/target"] for row in rows]
    assert targets[0] == pytest.approx(1e-3 * 2)
    assert targets == sorted(targets, reverse=True)
    layers = [name for name, _ in quantized_layers(trainer.model)]
    last = rows[-1]
    for quantity in ("target", "running", "talr"):
        values = [last[f"tr_layers/{layer}/{quantity}"] for layer in layers]
        assert last[f"tr/{quantity}"] == pytest.approx(sum(values) / len(values), rel=1e-4)
    groups = {g["name"]: g for g in trainer._trainer.optimizer.param_groups if "quantizer" in g}
    first = layers[0]
    assert last[f"tr_layers/{first}/talr"] == pytest.approx(
        groups[f"{first}.weight"]["talr"].item(), rel=1e-5
    )
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))


def test_an_error_in_the_first_iterations_is_not_hidden_by_the_log(quiet_config):
    trainer = QuantTrainer(quiet_config())
    run_step = trainer._trainer.run_step

    def fail():
        if trainer.iter == 1:
            raise FloatingPointError("at once")
        run_step()

    trainer._trainer.run_step = fail
    with pytest.raises(FloatingPointError, match="at once"):
        trainer.train()


def test_a_batch_too_small_for_batch_norm_is_one_line_in_the_log_too(quiet_config):
    small = ("INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MAX_SIZE_TRAIN", 32)
    trainer = QuantTrainer(quiet_config("SOLVER.IMS_PER_BATCH", 1, *small))
    log, lines = logging.getLogger("detectron2.engine.train_loop"), []
    handler = logging.StreamHandler(SimpleNamespace(write=lines.append, flush=lambda: None))
    log.addHandler(handler)
    with pytest.raises(ConfigError) as caught:
        trainer.train()
    log.removeHandler(handler)
    message = "SOLVER.IMS_PER_BATCH=1: must be larger (or the images), as batch norm needs two"
    assert str(caught.value).startswith(message)
    assert f"Exception during training: {caught.value}\n" in lines
    assert "Traceback" not in "".join(lines)


def test_resuming_with_another_bit_width_is_refused_and_nothing_is_lost(quiet_config, tmp_path):
    trained(quiet_config(), until=2)
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.pth")}
    assert before
    other = QuantTrainer(quiet_config("MODEL.QUANT.WEIGHT_BITS", 2))
    with pytest.raises(ValueError, match="codes -8 to 7, this model has .*codes -2 to 1"):
        other.resume_or_load(resume=True)
    assert before == {path: path.read_bytes() for path in before}


def test_two_runs_from_one_seed_are_bit_identical(quiet_config):
    states = []
    for name in ("a", "b"):
        cfg = quiet_config()
        cfg.OUTPUT_DIR += name
        seed_all_rng(cfg.SEED)
        states.append(trained(cfg).model.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=0)


def test_the_newest_checkpoints_are_kept_and_the_last_one(quiet_config, tmp_path):
    keys = {"CHECKPOINT_PERIOD": 1, "KEEP_CHECKPOINTS": 1, "MAX_ITER": 3}
    trained(quiet_config(*(word for key in keys for word in (f"SOLVER.{key}", keys[key]))))
    found = {path.name for path in (tmp_path / "out").glob("*.pth")}
    assert found == {"model_0000002.pth", "model_final.pth"}


@pytest.mark.parametrize(("optimizer", "bits"), [("SGD", 1), ("AdamT", 2), ("AdamW", 8)])
def test_other_optimizers_and_bit_widths_train(quiet_config, optimizer, bits):
    cfg = quiet_config("MODEL.QUANT.WEIGHT_BITS", bits, "MODEL.QUANT.ACT_BITS", bits)
    cfg.SOLVER.OPTIMIZER = optimizer
    cfg.SOLVER.BASE_LR = 1e-3
    cfg.SOLVER.MAX_ITER = 2
    trainer = trained(cfg)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_the_papers_resnet50_at_w4a4_trains_and_moves_codes(tiny, scenes, tmp_path):
    pairs = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN"]
    pairs += ["DATASETS.TRAIN", (tiny.TRAIN,), "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0]
    pairs += ["INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2]
    pairs += ["OUTPUT_DIR", str(tmp_path), "SEED", 0]
    config = tiny.ROOT / "configs/COCO-Detection/retinanet_R_50_FPN_qat_sgdt.yaml"
    trainer = trained(load_config(config, pairs))
    metrics = trainer._trainer.optimizer.transition_metrics()
    assert len(metrics.names) == 68
    assert metrics.rate.max() > 0
    assert (metrics.talr > 0).all()


def test_quantization_that_does_not_happen_is_refused(make_config):
    cfg = make_config("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.QUANT.SKIP", ["*"])
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    with pytest.raises(ValueError, match=r"ENABLED=True, but no layer of RetinaNet with build_ret"):
        QuantTrainer.build_model(cfg)
