"""The LazyConfig builds what the YAML configs build, for every row of the table in the README."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch.nn import Parameter

from tr_det.core import ConfigError, QuantConv2d, set_scales
from tr_det.detection import add_tr_det_config, build_optimizer
from tr_det.detection.lazy import make_optimizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs/COCO-Detection"
FIRST_AND_LAST = ("backbone.bottom_up.stem.conv1", "head.cls_score", "head.bbox_pred")
DEPTH = "model.backbone.bottom_up.stages.depth"


def table():
    """Return (row, YAML file, its pairs, options of the LazyConfig) from the README's table."""
    text = (CONFIGS.parent / "README.md").read_text()
    protocol_all = re.search("^ALL='(.*)'$", text, re.MULTILINE)[1]
    rows = []
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.split("|")]
        if len(cells) == 6 and cells[3].startswith("retinanet_R_50_FPN_"):
            words = [word.replace("$ALL", protocol_all) for word in shlex.split(cells[3])]
            rows.append((cells[1], words[0], words[1:], shlex.split(cells[4])))
    return rows


ROWS = table()


def load(file, pairs=(), options=()):
    cfg = get_cfg()
    add_tr_det_config(cfg)
    cfg.merge_from_file(str(CONFIGS / file))
    cfg.merge_from_list(list(pairs))
    cfg.MODEL.DEVICE = "meta"
    lazy = LazyConfig.load(str(CONFIGS / "retinanet.py"))
    return LazyConfig.apply_overrides(lazy, list(options)), cfg


def built(lazy, cfg):
    with torch.device("meta"):
        return instantiate(lazy.model), build_model(cfg)


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize(("row", "file", "pairs", "options"), ROWS, ids=[row[0] for row in ROWS])
def test_both_commands_of_a_row_build_it(row, file, pairs, options, depth):
    file = file.replace("R_50", f"R_{depth}")
    lazy, cfg = load(file, pairs, [*options, f"{DEPTH}={depth}"])
    from_lazy, from_yaml = built(lazy, cfg)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (from_lazy, from_yaml)]
    assert shapes[0] == shapes[1]
    assert layers_of(from_lazy) == layers_of(from_yaml)
    assert bits_of(from_yaml) == expected_bits(row)
    assert type(from_lazy.head) is type(from_yaml.head)
    trained = [[p.requires_grad for p in m.parameters()] for m in (from_lazy, from_yaml)]
    assert trained[0] == trained[1]
    lazy.optimizer.params.model = from_lazy
    optimizer, expected = instantiate(lazy.optimizer), build_optimizer(cfg, from_yaml)
    assert type(optimizer) is type(expected)
    assert type(optimizer).__name__ == ("SGDT" if "SGDT" in row else "SGD")
    assert settings(optimizer) == settings(expected)
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    if "full" not in row:  # starts from the result of full precision
        _, full = load(f"retinanet_R_{depth}_FPN_fp.yaml")
        assert f"{full.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS


def bits_of(model):
    """Return ({bits of first and last layers}, {bits of the others}); None in full precision."""
    if model.quant_report is None:
        return None
    bits = {x.name: (x.weight_bits, x.act_bits) for x in model.quant_report.layers}
    return {bits.pop(name) for name in FIRST_AND_LAST}, set(bits.values())


def expected_bits(row):
    bits = re.match(r"W(\d)A(\d)", row)
    outer = 8 if "all" in row else 32
    return bits and ({(outer, outer)}, {(int(bits[1]), int(bits[2]))})


def test_the_rows_write_to_different_folders():
    loaded = [load(file, pairs, options) for _, file, pairs, options in ROWS]
    for folders in ([cfg.OUTPUT_DIR for _, cfg in loaded], [x.train.output_dir for x, _ in loaded]):
        assert len(set(folders)) == len(ROWS) > 5
    lazy, cfg = loaded[0]
    assert lazy.train.output_dir == cfg.OUTPUT_DIR  # of full precision: either can start QAT


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


@pytest.mark.parametrize("row", ROWS[:3:2], ids=["fp", "sgdt"])
def test_both_have_the_same_data_and_learning_rates(row):
    lazy, cfg = load(*row[1:])
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


def test_both_compute_the_same_losses(storage):
    lazy, cfg = load("retinanet_R_18_FPN_qat_sgdt.yaml", options=[f"{DEPTH}=18"])
    cfg.MODEL.DEVICE = "cpu"
    lazy.model.backbone.bottom_up.stem.norm = "BN"
    lazy.model.backbone.bottom_up.stages.norm = cfg.MODEL.RESNETS.NORM = "BN"
    from_lazy, from_yaml = instantiate(lazy.model), build_model(cfg)
    from_yaml.load_state_dict(from_lazy.state_dict())
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 48.0]]))
    instances.gt_classes = torch.tensor([3])
    image = torch.arange(3 * 64 * 64, dtype=torch.uint8).view(3, 64, 64)
    batch = [{"image": image, "instances": instances}]
    for model in (from_lazy, from_yaml):
        set_scales(model, lambda model=model: model(batch))
    got, expected = from_lazy(batch), from_yaml(batch)
    assert set(got) == {"loss_cls", "loss_box_reg"}
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert from_lazy.test_nms_thresh == from_yaml.test_nms_thresh
    assert from_lazy.test_score_thresh == from_yaml.test_score_thresh


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (f"{DEPTH}=19", f"^{DEPTH}=19: must be one of"),
        ("model.quant.weight_bits=9", "weight_bits=9: must be from 1 to 8"),
        ("model.quant.protocol=none", r"^model\.quant\.protocol='none': must be one of"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(option, message):
    lazy, _ = load("retinanet_R_50_FPN_qat_sgdt.yaml", options=[option])
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        instantiate(lazy.model)


@pytest.mark.parametrize(
    ("node", "name", "value", "allowed"),
    [
        ("model.backbone.bottom_up", "freeze_at", 9, "from 0 to 5"),
        ("model.backbone", "out_channels", 0, "at least 1"),
        ("model.head", "prior_prob", 1, "in (0, 1)"),
        ("model.anchor_generator", "offset", -1, "in [0, 1)"),
        ("model.anchor_matcher", "thresholds", [0.5, 0.4], "numbers in (0, 1]"),
        ("model.box2box_transform", "weights", [1, 1, 1, 0], "four numbers"),
        ("dataloader.train.mapper.augmentations[0]", "short_edge_length", 0, "a list, each"),
        ("dataloader.train.mapper.augmentations[0]", "max_size", 0, "at least 1"),
        ("dataloader.test.mapper.augmentations[0]", "short_edge_length", -1, "at least 0"),
        ("dataloader.train", "total_batch_size", 0, "at least 1"),
        ("dataloader.test", "num_workers", -1, "from 0 to 128"),
        ("optimizer", "weight_decay", float("nan"), "not negative"),
        ("optimizer", "max_iter", 0, "at least 1"),
    ],
)
def test_what_yaml_configs_refuse_is_refused(node, name, value, allowed):
    lazy, _ = load("retinanet_R_18_FPN_qat_sgdt.yaml", options=[f"{DEPTH}=18"])
    OmegaConf.update(lazy, f"{node}.{name}", value)
    lazy.dataloader.train.dataset = lazy.dataloader.test.dataset = []
    lazy.optimizer.params.model = torch.nn.Linear(1, 1)
    with torch.device("meta"), pytest.raises(ConfigError) as caught:
        instantiate(OmegaConf.select(lazy, node))
    shown = [value] if name == "short_edge_length" and value == 0 else value
    start = f"{node.removesuffix('[0]')}.{name}={shown}: must be {allowed}"
    assert str(caught.value).startswith(start)


def test_an_optimizer_that_does_not_exist_is_refused():
    params = {"model": torch.nn.Linear(1, 1), "base_lr": 0.1, "weight_decay": 0.0}
    with pytest.raises(ValueError, match=r"^optimizer\.name='Nothing': must be one of \['Adag"):
        make_optimizer(params, "Nothing", 1, lr=0.1)


def test_parts_can_be_overridden_as_on_the_command_line():
    lazy, _ = load(
        "retinanet_R_18_FPN_qat_sgdt.yaml",
        options=[
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
    assert optimizer._tr.scales == "sum"
    lazy.optimizer.name = "Adam"
    assert type(instantiate(lazy.optimizer)) is torch.optim.Adam
    assert optimizer._tr.total_steps == 7
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.05}
