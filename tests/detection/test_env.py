"""DETECTRON2_ENV_MODULE: Detectron2's own tools run our YAML configs as they are."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from tests.detection.solver import test_methods as methods
from tests.detection.upstream_tools import run_tools, tool

EVALUATED = ("weight_average", "bn_reestimation")
"""Methods that evaluate a changed model; Detectron2's tools reach them on another path."""


@pytest.fixture(scope="module")
def full_precision(tiny, scenes, tmp_path_factory):
    """Return path and weights of a full-precision checkpoint, by its iteration a run's end."""
    folder = tmp_path_factory.mktemp("full")
    model = build_model(tiny.tiny_config(folder, "MODEL.QUANT.ENABLED", False))
    DetectionCheckpointer(model, str(folder)).save("fp", iteration=89_999)
    return folder / "fp.pth", model.state_dict()


@pytest.fixture(scope="module")
def train_net(tiny, scenes, tmp_path_factory, full_precision):
    """Run train_net.py on a digits config and once per method; return the folder and the output."""
    folder = tmp_path_factory.mktemp("train_net")
    script = str(tool("train_net.py"))
    lines = command_lines(script, tiny, folder, full_precision[0])
    for guest in EVALUATED:
        methods.config_of(tiny, folder / guest, guest)
        lines.append([script, "--config-file", f"{folder}/{guest}/config.yaml"])
    average = folder / "weight_average"
    again = ["OUTPUT_DIR", f"{average}/again", "MODEL.WEIGHTS", f"{average}/model_averaged.pth"]
    lines.append([script, "--config-file", f"{average}/config.yaml", "--eval-only", *again])
    return folder, run_tools("detectron2", scenes, lines)


@pytest.fixture(scope="module")
def plain_train_net(tiny, scenes, tmp_path_factory, full_precision):
    """The same for plain_train_net.py, without methods; tr_det.detection is imported first."""
    folder = tmp_path_factory.mktemp("plain")
    lines = command_lines(str(tool("plain_train_net.py")), tiny, folder, full_precision[0])
    return folder, run_tools("tr_det.detection", scenes, lines)


def command_lines(script, tiny, folder, weights):
    """Return three command lines: train from the weights, resume to the end, evaluate."""
    data = {name: MetadataCatalog.get(name) for name in (tiny.TRAIN, tiny.VAL)}
    pairs = {
        **tiny.SMALL,
        "OUTPUT_DIR": folder,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "DATASETS.REGISTER": [f"own_{k} {d.json_file} {d.image_root}" for k, d in data.items()],
        "DATASETS.TRAIN": (f"own_{tiny.TRAIN}",),
        "DATASETS.TEST": (f"own_{tiny.VAL}",),
        "MODEL.RETINANET.NUM_CLASSES": 80,  # Detectron2's default, so that the files' is taken
    }
    words = [str(word) for pair in pairs.items() for word in pair]
    start = [script, "--config-file", "configs/digits/retinanet_R18_half_w4a4_sgdt.yaml"]
    return [
        [*start, *words, "SOLVER.MAX_ITER", "2", "MODEL.WEIGHTS", str(weights)],
        [*start, "--resume", *words],
        [*start, "--eval-only", *words, "MODEL.WEIGHTS", f"{folder}/model_final.pth"],
    ]


@pytest.mark.parametrize("name", ["train_net", "plain_train_net"])
def test_detectron2s_tool_trains_resumes_and_evaluates(name, full_precision, request):
    folder, output = request.getfixturevalue(name)
    assert output.count("Start inference on 4") >= 3
    saved = torch.load(folder / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 3
    stem = "backbone.bottom_up.stem.conv1.weight"
    torch.testing.assert_close(saved["model"][stem], full_precision[1][stem], rtol=0, atol=0.05)
    assert any("weight_quantizer" in key for key in saved["model"])
    optimizer = (
        saved["trainer"]["_trainer"]["optimizer"] if "trainer" in saved else saved["optimizer"]
    )
    scheduled = [group for group in optimizer["param_groups"] if "talr" in group]
    assert len(scheduled) == sum("weight_quantizer.scale" in key for key in saved["model"])
    # The controllers have gone on from the second iteration.
    assert {group["tr_updates"] for group in scheduled} == {4}


@pytest.mark.parametrize("guest", EVALUATED)
def test_the_changed_model_is_evaluated_and_saved(guest, train_net, tiny):
    found = methods.Found(methods.config_of(tiny, train_net[0] / guest, guest))
    {
        "weight_average": methods.check_average,
        "bn_reestimation": methods.check_reestimated_norms,
    }[guest](found)


def test_without_the_variable_detectron2_is_untouched():
    from detectron2 import solver
    from detectron2.config import get_cfg

    assert "QUANT" not in get_cfg().MODEL
    assert solver.build_optimizer.__module__.startswith("detectron2.")
