"""The LazyConfig of a row builds what its YAML config builds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from torch.nn import Parameter

from tr_det.core import QuantConv2d, set_scales
from tr_det.detection import add_tr_det_config, build_optimizer
from tr_det.detection.lazy import make_optimizer, quant_config, retinanet_coco

CONFIGS = Path(__file__).resolve().parents[2] / "configs/COCO-Detection"
ROWS = sorted(CONFIGS.rglob("retinanet*.py"))


def load(path):
    cfg = get_cfg()
    add_tr_det_config(cfg)
    cfg.merge_from_file(str(path.with_suffix(".yaml")))
    cfg.MODEL.DEVICE = "meta"
    return LazyConfig.load(str(path)), cfg


def built(lazy, cfg):
    with torch.device("meta"):
        return instantiate(lazy.model), build_model(cfg)


def name_of(path):
    return str(path.relative_to(CONFIGS).with_suffix(""))


def test_every_coco_yaml_has_a_twin():
    assert {p.with_suffix(".yaml") for p in ROWS} == set(CONFIGS.rglob("retinanet*.yaml"))


@pytest.mark.parametrize("path", ROWS, ids=name_of)
def test_twins_build_the_same_model_and_optimizer(path):
    lazy, cfg = load(path)
    ours, theirs = built(lazy, cfg)
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert layers_of(ours) == layers_of(theirs)
    assert type(ours.head) is type(theirs.head)
    trained = [[p.requires_grad for p in model.parameters()] for model in (ours, theirs)]
    assert trained[0] == trained[1]
    lazy.optimizer.params.model = ours
    optimizer, expected = instantiate(lazy.optimizer), build_optimizer(cfg, theirs)
    assert type(optimizer) is type(expected)
    assert settings(optimizer) == settings(expected)
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert (lazy.train.init_checkpoint, lazy.train.output_dir) == (
        cfg.MODEL.WEIGHTS,
        cfg.OUTPUT_DIR,
    )


def layers_of(model):
    # The YAML's backbone is quantized by its builder, so the report knows another class of it.
    report = model.quant_report
    return report and [replace(layer, kind="") for layer in report.layers]


def settings(optimizer):
    """Return all groups without their tensors; of parameters the shapes."""

    def plain(value):
        if isinstance(value, torch.Tensor | Parameter):
            return value.shape
        return [p.shape for p in value] if isinstance(value, list) else value

    ignored = ("quantizer", "foreach", "initial_lr")
    transition = vars(optimizer).get("_tr")
    return transition, [
        {key: plain(value) for key, value in group.items() if key not in ignored}
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("stem", ["retinanet_R_18_FPN_fp", "retinanet_R_18_FPN_w4a4_sgdt"])
def test_twins_have_the_same_data_and_learning_rates(stem):
    lazy, cfg = load(CONFIGS / f"{stem}.py")
    multiplier = instantiate(lazy.lr_multiplier)
    scheduler = build_lr_scheduler(cfg, torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0))
    for where in (0, 100, 999, 1000, 45_000, 89_999):
        scheduler.last_epoch = where
        expected = scheduler.get_lr()[0]
        assert multiplier(where / 90_000) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    data = lazy.dataloader
    assert data.train.dataset.names == cfg.DATASETS.TRAIN[0]
    assert data.test.dataset.names == data.evaluator.dataset_name == cfg.DATASETS.TEST[0]
    assert data.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    resize = data.train.mapper.augmentations[0]
    assert tuple(resize.short_edge_length) == cfg.INPUT.MIN_SIZE_TRAIN
    assert resize.max_size == cfg.INPUT.MAX_SIZE_TRAIN
    assert data.test.mapper.augmentations[0].short_edge_length == cfg.INPUT.MIN_SIZE_TEST
    assert data.test.mapper.image_format == lazy.model.input_format == cfg.INPUT.FORMAT
    assert lazy.model.pixel_mean == cfg.MODEL.PIXEL_MEAN
    assert lazy.model.pixel_std == cfg.MODEL.PIXEL_STD


def test_twins_compute_the_same_losses(storage):
    lazy, cfg = load(CONFIGS / "retinanet_R_18_FPN_w4a4_sgdt.py")
    cfg.MODEL.DEVICE = "cpu"
    lazy.model.backbone.bottom_up.stem.norm = "BN"
    lazy.model.backbone.bottom_up.stages.norm = cfg.MODEL.RESNETS.NORM = "BN"
    ours, theirs = instantiate(lazy.model), build_model(cfg)
    theirs.load_state_dict(ours.state_dict())
    from detectron2.structures import Boxes, Instances

    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 48.0]]))
    instances.gt_classes = torch.tensor([3])
    image = torch.arange(3 * 64 * 64, dtype=torch.uint8).view(3, 64, 64)
    batch = [{"image": image, "instances": instances}]
    for model in (ours, theirs):
        set_scales(model, lambda model=model: model(batch))
    got, expected = ours(batch), theirs(batch)
    assert set(got) == {"loss_cls", "loss_box_reg"}
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert ours.test_nms_thresh == theirs.test_nms_thresh
    assert ours.test_score_thresh == theirs.test_score_thresh


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 19}, "depth=19: must be one of"),
        ({"depth": 18, "optimizer": "SGDX"}, "optimizer='SGDX': must be"),
        ({"depth": 18, "protocol": "none"}, "protocol='none': must be"),
    ],
)
def test_a_row_that_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        retinanet_coco(**arguments)


def test_bits_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="weight_bits=9: must be from 1 to 8"):
        quant_config(weight_bits=9)
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"^optimizer\.name='Nothing': must be one of \['Adag"):
        make_optimizer((model, [{"params": model.parameters()}]), "Nothing", 1, lr=0.1)


def test_parts_can_be_overridden_as_on_the_command_line():
    lazy, _ = load(CONFIGS / "retinanet_R_18_FPN_w4a4_sgdt.py")
    lazy = LazyConfig.apply_overrides(
        lazy,
        [
            *("model.quant.weight_bits=2", "train.max_iter=7", "optimizer.lr=0.5"),
            *("model.quant.weight_quantizer=lsbq", "model.quant.weight_options={prox: parq}"),
            *("optimizer.methods=[bn_reestimation]", "+optimizer.tr_scales=sum"),
        ],
    )
    with torch.device("meta"):
        model = instantiate(lazy.model)
    lazy.optimizer.params.model = model
    optimizer = instantiate(lazy.optimizer)
    inner = [m for m in model.modules() if isinstance(m, QuantConv2d) and m.weight_quantizer]
    assert {m.weight_quantizer.bits for m in inner} == {2}
    assert {m.weight_quantizer.prox for m in inner} == {"parq"}
    assert optimizer.follows_scales
    assert optimizer._tr.total_steps == 7
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.05}
