"""Which batch norms the fixed output grid works with, and how."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from fvcore.nn.precise_bn import get_bn_modules

from tr_det.core import quantized_layers
from tr_det.detection import QuantTrainer


def scaled(model, part):
    """Return which layers of a part have an output scale: True, False, or both."""
    inside = [layer for name, layer in quantized_layers(model) if part in name]
    assert inside
    return {layer.output_scale is not None for layer in inside}


@pytest.mark.parametrize(
    ("key", "part", "norm"),
    [
        *(("RESNETS", "res3", norm) for norm in ("BN", "SyncBN", "GN", "FrozenBN")),
        *(("RETINANET", "head.cls_subnet", norm) for norm in ("GN", "")),
    ],
)
def test_a_norm_trains_and_evaluates(key, part, norm, make_config):
    cfg = make_config(f"MODEL.{key}.NORM", norm, "SOLVER.MAX_ITER", 2)
    if norm == "GN":  # 32 groups; of one channel they could not normalise the pixel that is p7
        cfg.MODEL.FPN.OUT_CHANNELS = 64
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    trainer = QuantTrainer(cfg)
    # Only a trainable norm absorbs the scale of the grid; without one, a scale must be learned.
    assert scaled(trainer.model, part) == {norm in ("FrozenBN", "")}
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert "AP" in trainer._last_eval_results["bbox"]


def test_a_frozen_norm_without_output_scale_is_refused(make_config):
    cfg = make_config("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.QUANT.OUTPUT_SCALE", "never")
    # Nothing follows p6 and p7 in any case.
    cfg.MODEL.QUANT.RULES = ["*top_block.* output_scale=True"]
    with pytest.raises(
        ValueError, match=r"^MODEL\.QUANT\.OUTPUT_SCALE='never': must be .*no trainable norm"
    ):
        QuantTrainer.build_model(cfg)
    # The explicit way out: trained norms, which take over the frozen ones' numbers by name.
    cfg.MODEL.RESNETS.NORM = "BN"
    model = QuantTrainer.build_model(cfg)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())


def test_precise_bn_re_estimates_before_the_evaluation(make_config):
    cfg = make_config("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2)
    cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD = 2, 2
    seen = []

    class Watching(QuantTrainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            seen.append([norm.running_mean.clone() for norm in get_bn_modules(model)])
            return super().test(cfg, model, evaluators)

    plain = cfg.clone()
    plain.TEST.PRECISE_BN.ENABLED = False
    for config in (cfg, plain):
        Watching(config).train()
    precise, running = seen[0], seen[-1]
    assert len(precise) == len(running) > 20
    # Of a few steps, running statistics have barely left zero; precise ones are a batch's own.
    assert sum(p.abs().sum() for p in precise) > 1.5 * sum(r.abs().sum() for r in running)
