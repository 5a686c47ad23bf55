import re

import pytest

from tests.tiny import BASE
from tr_det.detection import quant_config_from
from tr_det.detection.config.quantization import parse_rule
from tr_det.detection.config.reading import load_config
from tr_det.detection.config.values import value_of


@pytest.mark.parametrize(
    ("path", "pairs", "message"),
    [
        (BASE, ["MODEL.QUANT.BITZ", 4], r"Non-existent key: MODEL\.QUANT\.BITZ"),
        (BASE, ["SEED", "3", "MODEL.QUANT.WEIGHT_BITS"], "without a value"),
        (BASE, ["model.name", "x"], "key: model; did you mean MODEL; a classifier's config is for"),
        (BASE, ["seed", "3"], "Non-existent key: seed; did you mean SEED$"),
        (BASE, ["SOLVER.TR.MOMENTUM", "True"], "SOLVER.TR.MOMENTUM='True': must be a number"),
        (BASE, ["MODEL.QUANT.WEIGHT_BITS", "4.0"], "WEIGHT_BITS='4.0': must be an integer"),
        (BASE, ["SEED", "three"], "SEED='three': must be an integer, below"),
        (BASE, ["DATASETS.TRAIN", "{}"], "DATASETS.TRAIN='{}': must be a list of names"),
        (BASE, ["MODEL.QUANT.ENABLED", "yes"], "ENABLED='yes': must be True or False"),
        (BASE, ["MODEL.TIMM.NAME", "resnet18d"], "TIMM.NAME='resnet18d': must be '' with MODEL.B"),
        ("configs/retinanet.py", [], r"--config-file=.*net\.py: must be a YAML file; a LazyConf"),
    ],
)
def test_what_cannot_be_read_is_refused_by_key(path, pairs, message):
    with pytest.raises(ValueError, match=message):
        load_config(path, pairs)


@pytest.mark.parametrize("text", ["1", "1.0", 1])
def test_an_integer_will_do_for_a_number(text):
    cfg = load_config(BASE, ["SOLVER.TR.FACTOR", text])
    assert type(cfg.SOLVER.TR.FACTOR) is float
    assert cfg.SOLVER.TR.FACTOR == 1.0


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.METHODS", "dampening", ["dampening"]),
        ("DATASETS.REGISTER", "lone 'my photos'", ["lone 'my photos'"]),
        ("INPUT.MIN_SIZE_TRAIN", "320", (320,)),
        ("SOLVER.TR.FACTOR", "auto", -1.0),
        ("SOLVER.TR.MOMENTUM", "None", -1.0),
        ("OUTPUT_DIR", "2024", "2024"),
        ("OUTPUT_DIR", "'a b'", "a b"),
    ],
)
def test_what_can_only_mean_one_value_is_taken(key, text, value):
    assert value_of(load_config(BASE, [key, text]), key) == value


def test_a_rule_is_parsed_into_its_fields():
    rule = parse_rule("head.* weight_bits=8 act_bits=7 signed_input=true output_scale=False")
    assert (rule.pattern, rule.weight_bits, rule.act_bits) == ("head.*", 8, 7)
    assert rule.signed_input is True
    assert rule.output_scale is False
    assert rule.skip is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head.*", "='head.*': must be 'GLOB key=value"),
        ("head.* bits=4", "='head.* bits=4': must be 'GLOB key=value"),
        ("head.* weight_bits=four", "=four': must be 'GLOB key=value ...', keys weight_bits"),
        ("head.* weight_bits=9", "weight_bits=9: must be from 1 to 8"),
        ("head.* signed_input=1", "signed_input=1': must be 'GLOB key=value"),
        ("head.* weight_bits", "='weight_bits': must be key=value"),
        (1, "=1: must be 'GLOB key=value"),
    ],
)
def test_a_bad_rule_is_refused_naming_the_key(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_rule(text)
    assert str(caught.value).startswith("MODEL.QUANT.RULES")


def test_a_glob_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match=r"^MODEL\.QUANT\.SKIP=1: must be a glob"):
        load_config(BASE, ["MODEL.QUANT.SKIP", [1]])


def test_a_rule_with_bits_overrules_skip_and_later_rules_win_field_by_field():
    rules = ["head.cls_score weight_bits=8", "head.cls_score act_bits=8"]
    cfg = load_config(BASE, ["MODEL.QUANT.RULES", rules])
    choice = quant_config_from(cfg).for_layer("head.cls_score")
    assert choice.skip is None
    assert (choice.weight_bits, choice.act_bits) == (8, 8)
