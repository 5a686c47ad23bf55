import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from tr_det import core
from tr_det.core import Quantizer, quantized_layers
from tr_det.detection import OPTIMIZER_REGISTRY, QuantTrainer, build_optimizer

PLAIN = ["SGD", "Adam", "NAdam", "Adamax", "AdamW", "RMSprop", "Adagrad"]


def test_every_optimizer_of_table_s5_is_registered_plain_and_scheduled():
    assert {name for name, _ in OPTIMIZER_REGISTRY} >= {*PLAIN, *(f"{name}T" for name in PLAIN)}


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
    model = build_model(cfg)
    of = {p: group for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    assert of[model.backbone.bottom_up.res2[0].conv1.norm.weight]["weight_decay"] == 0.5
    assert of[model.head.cls_score.bias]["lr"] == pytest.approx(2 * cfg.SOLVER.BASE_LR)
    assert of[model.backbone.bottom_up.res2[0].conv1.weight]["weight_decay"] == pytest.approx(1e-4)


def test_a_plain_optimizer_trains_weight_scales_if_asked(make_config):
    cfg = make_config("SOLVER.OPTIMIZER", "SGD", "MODEL.QUANT.LEARN_WEIGHT_SCALE", True)
    model = build_model(cfg)
    scales = build_optimizer(cfg, model).param_groups[-1]["params"]
    quantizers = [m for m in model.modules() if isinstance(m, Quantizer)]
    assert {id(q.scale) for q in quantizers} <= {id(p) for p in scales}


def test_transition_scheduling_refuses_trained_weight_scales(make_config):
    cfg = make_config("MODEL.QUANT.LEARN_WEIGHT_SCALE", True)
    with pytest.raises(
        ValueError, match=r"MODEL\.QUANT\.LEARN_WEIGHT_SCALE=True: must be False under TR"
    ):
        build_optimizer(cfg, build_model(cfg))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.OPTIMIZER", "SGDD", r"SOLVER\.OPTIMIZER='SGDD': must be one of \['Adagrad'"),
        ("SOLVER.TR.FACTOR", 0.0, r"SOLVER\.TR\.FACTOR=0\.0: must be in \(0, 1\]"),
        ("SOLVER.TR.MOMENTUM", 1.0, r"SOLVER\.TR\.MOMENTUM=1\.0: must be None or in \[0, 1\)"),
        ("SOLVER.TR.SCHEDULE", "cosin", r"SOLVER\.TR\.SCHEDULE='cosin': must be one of"),
        ("SOLVER.TR.UPDATE", "pid", r"SOLVER\.TR\.UPDATE='pid': must be one of"),
        ("SOLVER.TR.SIGNAL", "steps", r"SOLVER\.TR\.SIGNAL='steps': must be one of"),
        ("SOLVER.TR.GRANULARITY", "net", r"SOLVER\.TR\.GRANULARITY='net': must be one of"),
        (
            "SOLVER.TR.GAIN",
            -1.0,
            r"SOLVER\.TR\.GAIN=-1\.0: must be None, or finite and not negative",
        ),
        ("SOLVER.TR.LOG_PERIOD", 0, r"SOLVER\.TR\.LOG_PERIOD=0: must be at least 1"),
    ],
)
def test_bad_values_are_refused_by_key(make_config, key, value, message):
    cfg = make_config(key, value)
    with pytest.raises(ValueError, match=message):
        build_optimizer(cfg, build_model(cfg))


def test_gradient_clipping_of_detectron2_applies(make_config, storage):
    cfg = make_config(
        "SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01
    )
    cfg.SOLVER.BASE_LR = 1.0
    model = build_model(cfg)
    batch = next(iter(QuantTrainer.build_train_loader(cfg)))
    core.set_scales(model, lambda: model(batch))
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, core.SGDT)
    weight = model.backbone.bottom_up.res2[0].conv1.weight
    before = weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    optimizer.step()
    moved = (before - weight).abs().max().item()
    group = next(g for g in optimizer.param_groups if g["params"][0] is weight)
    decay = cfg.SOLVER.WEIGHT_DECAY * before.abs().max().item()
    assert 0 < moved <= group["talr"].item() * (0.01 + decay) * 1.01


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
