import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from tr_det import core
from tr_det.core import Quantizer, quantized_layers
from tr_det.detection import QuantTrainer, build_optimizer
from tr_det.detection.config.checks import check_config

PLAIN = ["SGD", "Adam", "NAdam", "Adamax", "AdamW", "RMSprop", "Adagrad"]


@pytest.mark.parametrize("name", [*PLAIN, *(f"{name}T" for name in PLAIN)])
def test_names_build_the_class_of_that_name(make_config, name):
    cfg = make_config("SOLVER.OPTIMIZER", name)
    optimizer = build_optimizer(cfg, build_model(cfg))
    expected = getattr(core, name) if name.endswith("T") else getattr(torch.optim, name)
    assert type(optimizer) is expected


def test_groups_hold_every_trainable_parameter_once_ordinary_ones_first(make_config):
    cfg = make_config()
    model = build_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {p for p in model.parameters() if p.requires_grad}
    names = [group.get("name") for group in groups]
    assert [name for name in names if name] == [f"{n}.weight" for n, _ in quantized_layers(model)]
    assert len(groups[0]["params"]) == max(len(group["params"]) for group in groups)
    scales = groups[-1]
    assert scales["lr"] == pytest.approx(cfg.SOLVER.BASE_LR / 10)
    assert scales["weight_decay"] == 0
    inputs = [m.input_quantizer.scale for _, m in quantized_layers(model)]
    assert {id(p) for p in inputs} <= {id(p) for p in scales["params"]}


def test_norm_decay_and_bias_lr_of_detectron2_are_respected(make_config):
    cfg = make_config("SOLVER.WEIGHT_DECAY_NORM", 0.5, "SOLVER.BIAS_LR_FACTOR", 2.0)
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 10**30  # torch takes no such integer
    model = build_model(cfg)
    of = {p: group for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    assert of[model.backbone.bottom_up.res2[0].conv1.norm.weight]["weight_decay"] == 0.5
    assert of[model.head.cls_score.bias]["lr"] == pytest.approx(2 * cfg.SOLVER.BASE_LR)
    assert type(of[model.head.cls_score.bias]["weight_decay"]) is float
    assert of[model.backbone.bottom_up.res2[0].conv1.weight]["weight_decay"] == pytest.approx(1e-4)


def test_a_plain_optimizer_trains_weight_scales_if_asked(make_config):
    cfg = make_config("SOLVER.OPTIMIZER", "SGD", "MODEL.QUANT.LEARN_WEIGHT_SCALE", True)
    model = build_model(cfg)
    scales = build_optimizer(cfg, model).param_groups[-1]["params"]
    quantizers = [m for m in model.modules() if isinstance(m, Quantizer)]
    assert {id(q.scale) for q in quantizers} <= {id(p) for p in scales}


def test_what_the_core_refuses_is_named_by_the_configs_key(make_config):
    cfg = make_config("MODEL.QUANT.LEARN_WEIGHT_SCALE", True)
    with pytest.raises(
        ValueError, match=r"MODEL\.QUANT\.LEARN_WEIGHT_SCALE=True: must be False under TR"
    ):
        build_optimizer(cfg, build_model(cfg))
    cfg.MODEL.QUANT.LEARN_WEIGHT_SCALE, cfg.SOLVER.TR.FACTOR = False, 0.0
    with pytest.raises(ValueError, match=r"SOLVER\.TR\.FACTOR=0\.0: must be in \(0, 1\]"):
        build_optimizer(cfg, build_model(cfg))


def test_without_quantization_sgdt_trains_bit_for_bit_like_sgd(make_config):
    weights = []
    for name in ("SGD", "SGDT"):
        cfg = make_config("MODEL.QUANT.ENABLED", False, "SOLVER.OPTIMIZER", name)
        cfg.DATASETS.TEST = ()
        cfg.OUTPUT_DIR += name
        seed_all_rng(0)
        trainer = QuantTrainer(cfg)
        trainer.train()
        weights.append(trainer.model.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=0)


def test_quantized_weights_may_have_a_learning_rate_of_their_own(make_config):
    keys = ("SOLVER.OPTIMIZER", "SGD", "SOLVER.QUANT_WEIGHT_LR_FACTOR", 3.0)
    cfg = make_config(*keys)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    of = {p: group for group in optimizer.param_groups for p in group["params"]}
    weights = {layer.weight for _, layer in quantized_layers(model)}
    for parameter, group in of.items():
        factor = 3.0 if parameter in weights else group["lr"] / cfg.SOLVER.BASE_LR
        assert group["lr"] == pytest.approx(factor * cfg.SOLVER.BASE_LR)
        assert parameter in weights or factor in (1.0, pytest.approx(0.1))
    scheduler = QuantTrainer.build_lr_scheduler(cfg, optimizer)
    optimizer.step()
    scheduler.step()
    (rate,) = {group["lr"] for group in optimizer.param_groups if group["params"][0] in weights}
    assert rate == pytest.approx(3 * optimizer.param_groups[0]["lr"])
    with pytest.raises(ValueError, match="QUANT_WEIGHT_LR_FACTOR=3.0: must be 1 with .*SGDT"):
        check_config(make_config(*keys[2:]))
