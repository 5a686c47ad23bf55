"""`QuantConfig` and `QuantRule`: bad values are refused with what is allowed."""

import re

import pytest

from tr_det.core import ConfigError, QuantConfig, QuantRule


@pytest.mark.parametrize("bits", [0, 9, 3.5, True, "4"])
@pytest.mark.parametrize("key", ["weight_bits", "act_bits"])
def test_bits_out_of_range_are_refused(key, bits):
    expected = rf"{key}={re.escape(repr(bits))}: .*1 to 8, or 32"
    with pytest.raises(ConfigError, match=f"^{expected}"):
        QuantConfig(**{key: bits})
    with pytest.raises(ConfigError, match=rf"'head\.\*'.*{expected}"):
        QuantRule(pattern="head.*", **{key: bits})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("weight_quantizer", "fixed_gird", "did you mean 'fixed_grid'"),
        ("act_quantizer", "fixed_gird", "did you mean 'fixed_grid'"),
        ("output_scale", "Auto", "'always', 'auto', 'never'"),
        ("output_scale", None, "'always', 'auto', 'never'"),
        ("recompute_inputs", "yes", "True or False"),
    ],
)
def test_other_values_are_refused(key, value, allowed):
    with pytest.raises(ConfigError, match=f"^{key}={value!r}: must be .*{allowed}"):
        QuantConfig(**{key: value})
