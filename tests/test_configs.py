"""Every detection config builds its model and optimizer, without storage."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation import verify_results
from detectron2.modeling import build_model

from tr_det.core.optim import optimizers
from tr_det.detection import QuantTrainer, add_tr_det_config, build_optimizer
from tr_det.detection.config.checks import check_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PATHS = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base")
    and path.relative_to(CONFIGS).parts[0] not in ("classification", "studies")
)
COCO = CONFIGS / "COCO-Detection"
LAST = {"head.cls_score", "head.bbox_pred"}
TIMM = importlib.util.find_spec("timm")


def name_of(path):
    return str(path.relative_to(CONFIGS).with_suffix(""))


def load(path):
    cfg = get_cfg()
    add_tr_det_config(cfg)
    cfg.merge_from_file(str(path))
    if cfg.MODEL.TIMM.NAME and not TIMM:
        pytest.skip("needs timm")
    cfg.MODEL.TIMM.WEIGHTS = ""  # no download
    return cfg


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_a_config_builds_what_its_name_says(path):
    cfg = load(path)
    cfg.MODEL.DEVICE = "cpu"  # the check refuses "cuda" where there is none
    check_config(cfg)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
        optimizer = build_optimizer(cfg, model)
    if path.stem.endswith("_fp"):
        assert model.quant_report is None
    else:
        bits = {x.name: (x.weight_bits, x.act_bits) for x in model.quant_report.layers}
        first = "body.conv_stem" if cfg.MODEL.TIMM.NAME else "stem.conv1"
        outer = {f"backbone.bottom_up.{first}", *LAST}
        assert {bits.pop(name) for name in outer} == {(32, 32)}
        assert set(bits.values()) == {(4, 4)}
        # TR scheduling needs frozen weight scales, the paper's plain baselines train them.
        learned = {layer.weight_quantizer.scale.requires_grad for layer in quantized(model)}
        assert learned == {path.stem.endswith("_sgd")}
    scheduled = any("talr" in group for group in optimizer.param_groups)
    assert scheduled == path.stem.endswith("_sgdt")
    depth = re.search(r"_R_?(\d+)", path.stem)
    if depth:
        assert int(depth[1]) == cfg.MODEL.RESNETS.DEPTH
    else:
        assert cfg.MODEL.TIMM.NAME.removeprefix("tf_") in path.stem
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"


def quantized(model):
    return [m for m in model.modules() if getattr(m, "weight_quantizer", None) is not None]


@pytest.mark.parametrize("path", sorted(COCO.rglob("retinanet*.yaml")), ids=name_of)
def test_a_coco_config_has_the_papers_hyperparameters(path):
    """Table S8 of the paper's supplement, last rows."""
    cfg = load(path)
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, solver.IMS_PER_BATCH) == (90_000, 16)
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.01, 0.9, 1e-4)
    assert (solver.TR.FACTOR, solver.TR.MOMENTUM, solver.TR.SCHEDULE) == (1e-3, 0.99, "cosine")
    assert (solver.TR.UPDATE, solver.TR.FINAL, solver.TR.GAIN) == ("additive", 0.0, 0.0)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0
    assert cfg.MODEL.QUANT.HEAD_INPUT_RELU


def test_output_folders_are_all_different():
    folders = [output_of(path) for path in PATHS]
    assert len(set(folders)) == len(folders) > 10


def output_of(path):
    return yaml.safe_load(path.read_text())["OUTPUT_DIR"]


def keys_in(path):
    """Return the dotted keys that a file and its bases set."""

    def flat(node, prefix=""):
        for key, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    node = yaml.safe_load(path.read_text())
    base = node.pop("_BASE_", None)
    own = set(flat(node)) - {"VERSION"}  # yacs' own
    return own | keys_in(path.parent / base) if base else own


@pytest.fixture
def keys_read(monkeypatch):
    """Return a set to which every dotted key is added when it is read from a config."""
    read, places = set(), {}
    plain = CfgNode.__getattr__

    def recorded(node, name):
        value = plain(node, name)
        # Held, so that no other node gets its id.
        prefix = places.get(id(node), (None, ""))[1]
        read.add(f"{prefix}{name}")
        if isinstance(value, CfgNode):
            places[id(value)] = (value, f"{prefix}{name}.")
        return value

    class Settings(dict):
        def __getitem__(self, name):
            read.add(f"SOLVER.TR.{name.upper()}")
            return super().__getitem__(name)

    arguments_from = optimizers.arguments_from  # called for TR-scheduled optimizers only
    monkeypatch.setattr(
        optimizers, "arguments_from", lambda values: arguments_from(Settings(values))
    )
    monkeypatch.setattr(CfgNode, "__getattr__", recorded)
    return read


# Configs that set the same keys read the same: one of each kind is enough.
KINDS = {(frozenset(keys_in(path)), path.parent.name): path for path in PATHS}


@pytest.mark.parametrize("path", sorted(KINDS.values()), ids=name_of)
def test_every_key_of_a_config_is_read_by_something(path, tiny, scenes, tmp_path, keys_read):
    cfg = load(path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (tiny.TRAIN,), (tiny.VAL,)
    cfg.MODEL.RETINANET.NUM_CLASSES = 10  # as the data set has
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(tmp_path / "no.pth"), str(tmp_path)
    cfg.DATALOADER.NUM_WORKERS = 0
    keys_read.clear()
    with torch.device("meta"):
        trainer = QuantTrainer(cfg)
    with pytest.raises(FileNotFoundError):  # reads WEIGHTS and how strictly to load them
        trainer.resume_or_load()
    trainer.build_test_loader(cfg, tiny.VAL)
    trainer.build_evaluator(cfg, tiny.VAL)
    expected = {}  # what verify_results finds as it should be; not read by attribute
    for task, metric, value, _ in cfg["TEST"]["EXPECTED_RESULTS"]:
        expected.setdefault(task, {})[metric] = value
    verify_results(cfg, expected)
    for hook in trainer._hooks:
        for writer in getattr(hook, "_writers", []):
            writer.close()
    unread = keys_in(path) - keys_read
    assert not unread


def test_a_key_that_nothing_reads_would_be_found(keys_read):
    cfg = get_cfg()
    cfg.clone().MODEL.RESNETS.DEPTH  # noqa: B018  through a copy, as DefaultTrainer reads
    assert "MODEL.RESNETS.DEPTH" in keys_read
    assert "MODEL.RESNETS.NORM" not in keys_read
