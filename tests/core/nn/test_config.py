"""`QuantConfig` and `QuantRule`: a bad value is named, with what is allowed."""

import dataclasses
import re

import pytest

from tr_det.core import QuantConfig, QuantRule

BAD_BITS = [0, 9, -1, 16, 3.5, 4.0, True, "4"]


@pytest.mark.parametrize("bits", [*BAD_BITS, None])
@pytest.mark.parametrize("key", ["weight_bits", "act_bits"])
def test_config_bits_out_of_range_raise(key: str, bits: object) -> None:
    with pytest.raises(ValueError, match=rf"^{key}={re.escape(repr(bits))}: .*1 to 8, or 32"):
        QuantConfig(**{key: bits})


@pytest.mark.parametrize("bits", BAD_BITS)
@pytest.mark.parametrize("key", ["weight_bits", "act_bits"])
def test_rule_bits_out_of_range_raise_with_the_pattern(key: str, bits: object) -> None:
    expected = rf"'head\.\*'.*{key}={re.escape(repr(bits))}: .*1 to 8, or 32"
    with pytest.raises(ValueError, match=expected):
        QuantRule(pattern="head.*", **{key: bits})


@pytest.mark.parametrize("bits", [*range(1, 9), 32])
def test_bits_in_range_are_kept(bits: int) -> None:
    config = QuantConfig(weight_bits=bits, act_bits=bits)
    rule = QuantRule(pattern="*", weight_bits=bits, act_bits=bits)
    assert (config.weight_bits, config.act_bits, rule.weight_bits, rule.act_bits) == (bits,) * 4


@pytest.mark.parametrize("key", ["weight_quantizer", "act_quantizer"])
def test_unknown_quantizer_raises_with_near_name(key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}='fixed_gird': must be one of .*'fixed_grid'"):
        QuantConfig(**{key: "fixed_gird"})
    with pytest.raises(ValueError, match="did you mean 'fixed_grid'"):
        QuantConfig(**{key: "fixed_gird"})


@pytest.mark.parametrize("policy", ["Auto", "", None, True])
def test_unknown_output_scale_policy_raises(policy: object) -> None:
    expected = rf"output_scale={re.escape(repr(policy))}: .*'always', 'auto', 'never'"
    with pytest.raises(ValueError, match=expected):
        QuantConfig(output_scale=policy)


@pytest.mark.parametrize("value", [QuantConfig(), QuantRule(pattern="*")])
def test_values_are_frozen(value: object) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.weight_bits = 2
