"""A detector's config files: nothing in them runs, and mistakes are one line."""

import dequantize
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.model_zoo import get_config_file

from tr_det.detection import env
from tr_det.detection.config.reading import load_config, load_config_for_cpu, read_tree

CPU = ["MODEL.DEVICE", "cpu"]


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def planted(write, tmp_path):
    """Return a config that builds on one with a command in it, and the file that it makes."""
    trace = tmp_path / "ran"
    write("base.yaml", f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {trace}']")
    return write("a.yaml", "_BASE_: base.yaml"), trace


def test_a_command_in_a_config_is_refused(planted):
    path, trace = planted
    with pytest.raises(
        ValueError, match=r"base\.yaml: line 1: the tag .*os\.system is not allowed"
    ):
        load_config(path, CPU)
    assert not trace.exists()


def test_a_tool_refuses_it_in_one_line(planted, tmp_path, capsys, monkeypatch):
    path, trace = planted
    output = str(tmp_path / "out.pth")
    monkeypatch.setattr("sys.argv", ["", "--output", output, "--config-file", path])
    with pytest.raises(SystemExit, match="2"):
        dequantize.main()
    assert capsys.readouterr().err.count("\n") == 1
    assert not trace.exists()


def test_detectron2s_tools_refuse_it_by_the_environment_module(planted, monkeypatch):
    path, trace = planted
    monkeypatch.setattr(CfgNode, "load_yaml_with_base", CfgNode.load_yaml_with_base)
    env._read_configs_without_running_them()
    with pytest.raises(ValueError, match=r"os\.system is not allowed"):
        get_cfg().merge_from_file(path)
    assert not trace.exists()


def test_the_zoos_retinanet_is_read_as_detectron2_does():
    """Its anchors are an expression."""
    path = get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    assert read_tree(path) == CfgNode.load_yaml_with_base(path, allow_unsafe=True)
    cfg, ours = get_cfg(), load_config(path, CPU)
    cfg.merge_from_file(path)
    assert ours.MODEL.ANCHOR_GENERATOR == cfg.MODEL.ANCHOR_GENERATOR
    assert ours.SOLVER.STEPS == cfg.SOLVER.STEPS


@pytest.mark.parametrize("arguments", ["['1 + 1']", "[2, 3]", "{args: [x]}", "[[x]]"])
def test_no_other_expression_is_evaluated(write, arguments):
    path = write("a.yaml", f"OUTPUT_DIR: !!python/object/apply:eval {arguments}")
    with pytest.raises(ValueError, match=r"a\.yaml: line 1: "):
        read_tree(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: 3", "^SOLVER=3: must be a mapping of keys$"),
        ("SOLVER: {TR: [1]}", r"^SOLVER\.TR=\[1\]: must be a mapping of keys$"),
        ("MODEL: {QUANT: {RULES: null}}", r"^MODEL\.QUANT\.RULES=None: must be a list$"),
        ("SOLVER: {BASE_LR: 'None'}", r"^SOLVER\.BASE_LR='None': must be a number, positive$"),
        ("MODEL: {LOAD_PROPOSALS: True}", r"^MODEL\.LOAD_PROPOSALS=True: must be False"),
        ("DATASETS: {TEST: [[val]]}", r"^DATASETS\.TEST=\(\['val'\],\): must be a list of names"),
        ("VERSION: 1", "^VERSION=1: must be 2$"),
        ("SOLVER: {MAX_ITR: 1}", r"SOLVER\.MAX_ITR; did you mean SOLVER\.MAX_ITER$"),
        ("_BASE_: nowhere.yaml", r"nowhere\.yaml: no such file"),
    ],
)
def test_a_mistake_in_a_config_is_named(write, text, message):
    with pytest.raises((ValueError, OSError), match=message):
        load_config(write("a.yaml", text), CPU)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("SOLVER", "3"), "^SOLVER='3': must be a mapping of keys$"),
        (("SOLVER.BASE_LR", "None"), r"^SOLVER\.BASE_LR='None': must be a number, positive$"),
        (("SOLVER.BASE_LR.X", "1"), r"^SOLVER\.BASE_LR=\{'X': '1'\}: must be a number, positive$"),
        (("SOLVER.ZEBRA", "1"), r"^Non-existent key: SOLVER\.ZEBRA$"),
        (("SOLVER.BASE_LR",), r"^SOLVER\.BASE_LR: a key without a value"),
        (("_BASE_", "b.yaml"), "_BASE_"),
        (("", "1"), "^Non-existent key: $"),
    ],
    ids=str,
)
def test_a_mistake_on_the_command_line_is_named(write, pair, message):
    with pytest.raises(ValueError, match=message):
        load_config(write("a.yaml", "SOLVER: {BASE_LR: 1}"), [*CPU, *pair])


def test_a_trained_detector_is_read_where_its_gpu_and_its_start_are_not(write):
    text = "MODEL: {DEVICE: 'cuda:99', TIMM: {WEIGHTS: gone.pth}}\n"
    text += "SOLVER: {AMP: {ENABLED: True, DTYPE: float16}}"
    cfg = load_config_for_cpu(write("config.yaml", text))
    assert (cfg.MODEL.DEVICE, cfg.MODEL.TIMM.WEIGHTS, cfg.SOLVER.AMP.ENABLED) == ("cpu", "", False)
