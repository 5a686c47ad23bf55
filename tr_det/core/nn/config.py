"""Quantization settings of a model and exceptions by layer name: frozen and checked values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from tr_det.core.errors import ConfigError, check, check_among, is_whole
from tr_det.core.quantizers import QUANTIZERS
from tr_det.core.quantizers.spec import Spec

FULL_PRECISION = 32
OUTPUT_SCALE_POLICIES = ("auto", "always", "never")


def check_bits(key: str, bits: object) -> None:
    """Raise ConfigError unless bits is an integer from 1 to 8, or 32 for full precision."""
    valid = is_whole(bits) and (1 <= bits <= 8 or bits == FULL_PRECISION)
    check(key, bits, valid, f"from 1 to 8, or {FULL_PRECISION} for full precision")


@dataclass(frozen=True, kw_only=True)
class QuantRule:
    """An exception for layers whose names match a pattern. Fields that are None change nothing.

    Attributes:
        pattern: case-sensitive glob for full dotted layer names, e.g. ``"backbone.fpn_output*"``.
        skip: True leaves the layer in full precision.
        weight_bits: 1 to 8, or 32 for full precision.
        act_bits: the same, for the layer's input.
        signed_input: whether the input can be negative; otherwise the config says it.
        output_scale: whether the layer gets a learnable output scale.
        optional: whether the pattern may match no layer; otherwise that is an error.
    """

    pattern: str
    skip: bool | None = None
    weight_bits: int | None = None
    act_bits: int | None = None
    signed_input: bool | None = None
    output_scale: bool | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        named = isinstance(self.pattern, str)
        check("rules", self.pattern, named, "a glob over the names of layers")
        for key in ("weight_bits", "act_bits"):
            if getattr(self, key) is not None:
                check_bits(f"rule {self.pattern!r}: {key}", getattr(self, key))
        for key in ("skip", "signed_input", "output_scale"):
            value = getattr(self, key)
            known = value is None or isinstance(value, bool)
            check(f"rule {self.pattern!r}: {key}", value, known, "True, False or None")

    def matches(self, name: str) -> bool:
        """Return whether the pattern matches the name of a layer."""
        return fnmatchcase(name, self.pattern)


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """How to quantize a model.

    Attributes:
        weight_bits: 1 to 8, or 32 for full precision.
        act_bits: the same, for the layers' inputs.
        weight_quantizer: registry name.
        act_quantizer: registry name.
        weight_options: options of the weight quantizers, e.g. ``{"per_channel": True}``.
        act_options: options of the input quantizers.
        learn_weight_scale: train the parameters of weight quantizers, as the paper's plain
            baselines do. Under TR scheduling this needs ``tr_scales``, because weights then
            transit without being updated.
        signed_input: whether inputs can be negative, unless a rule says otherwise; None: each
            layer's input is looked at when the scales are set (`set_scales`), or a checkpoint
            says it.
        output_scale: ``"auto"`` adds a learnable output scale where a quantizer needs it (its
            output grid is fixed) and no trainable norm is found to follow; ``"always"``;
            ``"never"`` (an error where ``"auto"`` would add one).
        recompute_inputs: quantize each layer's input again in the backward pass instead of storing
            it: activations take the memory of full precision. Results are the same.
        rules: exceptions by layer name, applied in order; later ones win field by field.
    """

    weight_bits: int = 4
    act_bits: int = 4
    weight_quantizer: str = "fixed_grid"
    act_quantizer: str = "fixed_grid"
    weight_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    act_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    learn_weight_scale: bool = False
    signed_input: bool | None = None
    output_scale: str = "auto"
    recompute_inputs: bool = False
    rules: tuple[QuantRule, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check every field."""
        check_bits("weight_bits", self.weight_bits)
        check_bits("act_bits", self.act_bits)
        for key in ("learn_weight_scale", "recompute_inputs"):
            value = getattr(self, key)
            check(key, value, isinstance(value, bool), "True or False")
        known = self.signed_input is None or isinstance(self.signed_input, bool)
        check("signed_input", self.signed_input, known, "True, False or None")
        check_among("output_scale", self.output_scale, OUTPUT_SCALE_POLICIES)
        for part, role in (("weight", "weight"), ("act", "input")):
            self._check_quantizer(part, role)

    def _check_quantizer(self, part: str, role: str) -> None:
        """Build the quantizer once, so that bad options are refused before there is a model."""
        name, options = getattr(self, f"{part}_quantizer"), getattr(self, f"{part}_options")
        check_among(f"{part}_quantizer", name, QUANTIZERS)
        cls, bits = QUANTIZERS[name], getattr(self, f"{part}_bits")
        fits = role in cls.roles
        others = [known for known in sorted(QUANTIZERS) if role in QUANTIZERS[known].roles]
        check(f"{part}_quantizer", name, fits, f"one of {others}, which quantize a layer's {role}")
        signed = role == "weight" or bool(self.signed_input)
        channels = 1 if role == "weight" else None
        try:
            QUANTIZERS.check(name, options)
            if bits != FULL_PRECISION:
                cls(Spec(bits, signed, role, channels), **options)
        except ConfigError as error:
            key = {"bits": f"{part}_bits"}.get(error.key, f"{part}_options.{error.key}")
            raise error.renamed(key) from None

    def for_layer(self, name: str) -> LayerChoice:
        """Return the settings of one layer: the config's, then those of the rules that match."""
        choice = LayerChoice(None, self.weight_bits, self.act_bits, self.signed_input, None)
        for rule in self.rules:
            if not rule.matches(name):
                continue
            changes = {k: v for k, v in vars(rule).items() if k in vars(choice) and v is not None}
            if "skip" in changes:
                changes["skip"] = rule.pattern if rule.skip else None
            choice = replace(choice, **changes)
        return choice


@dataclass(frozen=True)
class LayerChoice:
    """The settings of one layer.

    Attributes:
        skip: pattern of the rule that leaves the layer in full precision, or None.
        weight_bits: 1 to 8 or 32.
        act_bits: 1 to 8 or 32.
        signed_input: whether the input can be negative; None: to be found.
        output_scale: whether a rule gives it an output scale; None: the config's policy decides.
    """

    skip: str | None
    weight_bits: int
    act_bits: int
    signed_input: bool | None
    output_scale: bool | None
