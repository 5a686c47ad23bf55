import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from tr_det.core.transition.settings import arguments_from, config_defaults
from tr_det.detection import add_tr_det_config, quant_config_from
from tr_det.detection.config.quantization import parse_rule
from tr_det.detection.config.reading import merge_file, merge_pairs

PACKAGE = Path(__file__).resolve().parents[3] / "tr_det"


def new_config():
    cfg = get_cfg()
    add_tr_det_config(cfg)
    return cfg


def leaves(node, prefix=""):
    for key, value in node.items():
        name = f"{prefix}{key}"
        yield from leaves(value, f"{name}.") if hasattr(value, "items") else [name]


def test_every_key_of_ours_is_read_by_the_code():
    theirs = set(leaves(get_cfg()))
    ours = [key for key in leaves(new_config()) if key not in theirs]
    code = "\n".join(
        path.read_text()
        for path in PACKAGE.rglob("*.py")
        if path.parts[-2:] != ("config", "keys.py")
    )
    # Read by the core from its own table.
    from_table = {f"SOLVER.TR.{name.upper()}" for name in config_defaults()}
    assert from_table < set(ours)
    assert arguments_from(config_defaults()).keys() == {f"tr_{name}" for name in config_defaults()}
    unread = [
        key
        for key in ours
        if key not in from_table and not re.search(rf"\.{key.rsplit('.', 1)[-1]}\b", code)
    ]
    assert len(ours) > 20
    assert unread == []


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match=r"Non-existent key: MODEL\.QUANT\.BITZ"):
        merge_pairs(new_config(), ["MODEL.QUANT.BITZ", 4])


def test_a_lazy_config_is_sent_to_its_own_tool():
    with pytest.raises(
        ValueError, match=r"--config-file=.*fp\.py: must be a YAML file; a LazyConf"
    ):
        merge_file(new_config(), "configs/COCO-Detection/retinanet_R_50_FPN_fp.py")


def test_a_key_without_value_is_refused():
    with pytest.raises(ValueError, match="odd length"):
        merge_pairs(new_config(), ["SEED", "3", "MODEL.QUANT.WEIGHT_BITS"])


@pytest.mark.parametrize("text", ["-1", "-1.0", -1])
def test_an_integer_will_do_for_a_number(text):
    cfg = new_config()
    merge_pairs(cfg, ["SOLVER.TR.MOMENTUM", text])
    assert type(cfg.SOLVER.TR.MOMENTUM) is float
    assert cfg.SOLVER.TR.MOMENTUM == -1.0


@pytest.mark.parametrize(
    ("key", "text"),
    [("SOLVER.TR.MOMENTUM", "True"), ("MODEL.QUANT.WEIGHT_BITS", "4.0"), ("SEED", "three")],
)
def test_values_of_another_type_are_refused(key, text):
    with pytest.raises(ValueError, match=f"Type mismatch .* for config key: {key}"):
        merge_pairs(new_config(), [key, text])


@pytest.mark.parametrize("key", ["WEIGHT_BITS", "ACT_BITS"])
@pytest.mark.parametrize("bits", [0, 9, -1, 16])
def test_bits_out_of_range_are_refused_by_key_value_and_range(key, bits):
    cfg = new_config()
    cfg.MODEL.QUANT[key] = bits
    with pytest.raises(ValueError, match=rf"MODEL\.QUANT\.{key}={bits}: must be from 1 to 8"):
        quant_config_from(cfg)


@pytest.mark.parametrize(
    ("key", "value"), [("WEIGHT_QUANTIZER", "fixed_gird"), ("OUTPUT_SCALE", "sometimes")]
)
def test_unknown_names_are_refused_with_what_is_allowed(key, value):
    cfg = new_config()
    cfg.MODEL.QUANT[key] = value
    with pytest.raises(ValueError, match=rf"MODEL\.QUANT\.{key}='{value}': must be one of \["):
        quant_config_from(cfg)


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
    ],
)
def test_a_bad_rule_is_refused_naming_the_key(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_rule(text)
    assert str(caught.value).startswith("MODEL.QUANT.RULES")


def test_a_rule_with_bits_overrules_skip_and_later_rules_win_field_by_field():
    cfg = new_config()
    cfg.MODEL.QUANT.RULES = ["head.cls_score weight_bits=8", "head.cls_score act_bits=8"]
    choice = quant_config_from(cfg).for_layer("head.cls_score")
    assert choice.skip is None
    assert (choice.weight_bits, choice.act_bits) == (8, 8)
