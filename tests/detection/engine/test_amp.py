import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer

from tr_det.core import ConfigError, quantized_layers
from tr_det.detection import QuantTrainer
from tr_det.detection.engine.amp import AutocastTrainer, build_loop


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


def test_mixed_precision_on_a_cpu_is_close_to_full_precision(make_config):
    losses = []
    for overrides in ((), ("SOLVER.AMP.ENABLED", True)):
        trainer, dtypes = trained(make_config, *overrides)
        losses.append(trainer.storage.history("total_loss").values())
        assert dtypes == {torch.bfloat16 if overrides else torch.float32}
        for name, parameter in trainer.model.named_parameters():
            assert parameter.dtype == torch.float32, name
            assert torch.isfinite(parameter).all(), name
    for (full, _), (mixed, _) in zip(*losses, strict=True):
        assert mixed == pytest.approx(full, rel=0.05)
        assert mixed != full


def test_images_whose_gradients_would_be_unset_are_refused(make_config):
    with pytest.raises(ConfigError, match=r"^SOLVER\.AMP\.ENABLED=True: .*backbone\.top_block\.p7"):
        QuantTrainer(make_config("SOLVER.AMP.ENABLED", True)).train()


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
