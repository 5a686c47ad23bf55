import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer

from tr_det.core import quantized_layers
from tr_det.detection import QuantTrainer
from tr_det.detection.engine.amp import AutocastTrainer, amp_dtype, build_loop


def trained(make_config, *overrides):
    cfg = make_config(*overrides)
    cfg.DATASETS.TEST = ()
    # Smaller images give p7 an input of one pixel, see AutocastTrainer.
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (128,), 128
    cfg.OUTPUT_DIR += str(len(overrides))
    torch.manual_seed(0)
    trainer = QuantTrainer(cfg)
    seen = []
    _, layer = next(quantized_layers(trainer.model))
    layer.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    trainer.train()
    return trainer, set(seen)


@pytest.mark.parametrize("optimizer", ["SGD", "SGDT", "AdamWT"])
def test_mixed_precision_trains_on_a_cpu_in_bfloat16(make_config, optimizer):
    trainer, dtypes = trained(
        make_config, "SOLVER.AMP.ENABLED", True, "SOLVER.OPTIMIZER", optimizer
    )
    assert dtypes == {torch.bfloat16}
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert torch.isfinite(parameter).all(), name
    assert trainer.iter == 4


def test_mixed_precision_is_close_to_full_precision(make_config):
    losses = []
    for overrides in ((), ("SOLVER.AMP.ENABLED", True)):
        trainer, dtypes = trained(make_config, *overrides)
        losses.append(trainer.storage.history("total_loss").values())
        assert dtypes == {torch.bfloat16 if overrides else torch.float32}
    for (full, _), (mixed, _) in zip(*losses, strict=True):
        assert mixed == pytest.approx(full, rel=0.05)
        assert mixed != full


@pytest.mark.parametrize(
    ("device", "name", "dtype"),
    [
        ("cpu", "auto", torch.bfloat16),
        ("cpu", "bfloat16", torch.bfloat16),
        ("cuda", "auto", torch.float16),
        ("cuda:1", "bfloat16", torch.bfloat16),
    ],
)
def test_dtypes_by_device(make_config, device, name, dtype):
    assert amp_dtype(make_config("MODEL.DEVICE", device, "SOLVER.AMP.DTYPE", name)) is dtype


@pytest.mark.parametrize("name", ["float16", "half"])
def test_dtypes_that_do_not_work_are_refused(make_config, name):
    with pytest.raises(ValueError, match=rf"SOLVER\.AMP\.DTYPE='{name}': must be"):
        amp_dtype(make_config("SOLVER.AMP.DTYPE", name))


@pytest.mark.parametrize(
    ("overrides", "loop"),
    [
        ((), SimpleTrainer),
        (("SOLVER.AMP.ENABLED", True), AMPTrainer),
        (("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16"), AutocastTrainer),
    ],
)
def test_loops_on_a_gpu(make_config, overrides, loop):
    cfg = make_config("MODEL.DEVICE", "cuda", *overrides)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert type(build_loop(cfg, model, [], optimizer)) is loop
