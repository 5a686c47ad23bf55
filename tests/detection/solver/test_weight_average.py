"""torch's averages of weights on a quantized model, within the trainer."""

import pytest
import torch
from detectron2.engine import HookBase
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tr_det.core import is_calibrated, quantized_layers
from tr_det.detection import QuantTrainer

DECAY = 0.5


class Averaging(HookBase):
    """Keeps torch's moving average, and one by hand."""

    def __init__(self, model):
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self.by_hand = None

    def after_step(self):
        model = self.trainer.model
        self.average.update_parameters(model)
        now = {key: p.detach().clone() for key, p in model.named_parameters()}
        self.by_hand = self.by_hand or now
        self.by_hand = {
            key: DECAY * mean + (1 - DECAY) * now[key] for key, mean in self.by_hand.items()
        }


@pytest.fixture(scope="module")
def averaged(tiny, scenes, tmp_path_factory):
    cfg = tiny.tiny_config(tmp_path_factory.mktemp("ema"), "SOLVER.TR.FACTOR", 0.1)
    cfg.DATASETS.TEST = ()
    trainer = QuantTrainer(cfg)
    hook = Averaging(trainer.model)
    trainer.register_hooks([hook])
    trainer.train()
    cfg.DATASETS.TEST = (tiny.VAL,)
    return cfg, hook, trainer


def test_the_average_is_that_of_latent_weights_and_scales(averaged):
    _, hook, trainer = averaged
    found = dict(hook.average.module.named_parameters())
    assert found.keys() == hook.by_hand.keys()
    for key, expected in hook.by_hand.items():
        torch.testing.assert_close(found[key].detach(), expected, msg=key)
    moved = [not torch.equal(p, found[key]) for key, p in trainer.model.named_parameters()]
    assert sum(moved) > len(moved) / 2


def test_the_average_is_quantized_on_its_own_and_calibrated(averaged):
    _, hook, trainer = averaged
    model = hook.average.module
    assert is_calibrated(model)
    ours = dict(quantized_layers(trainer.model))
    for name, layer in quantized_layers(model):
        assert layer is not ours[name]
        codes = layer.weight_quantizer.codes(layer.weight)
        assert codes.min() >= -8
        assert codes.max() <= 7


def test_the_average_can_be_evaluated(averaged):
    cfg, hook, trainer = averaged
    results = trainer.test(cfg, hook.average.module)
    assert "AP" in results["bbox"]
