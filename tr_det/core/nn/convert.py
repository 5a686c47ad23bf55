"""In-place conversion of a model's layers to quantized ones, by name rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from tr_det.core.errors import ConfigError, check
from tr_det.core.nn.config import FULL_PRECISION, LayerChoice, QuantConfig
from tr_det.core.nn.layers import QuantConv2d, QuantLinear, _QuantLayer
from tr_det.core.nn.output_scale import OutputScale
from tr_det.core.nn.report import LayerReport, QuantReport
from tr_det.core.quantizers import QUANTIZERS, Calibrated, Quantizer, Spec

_QUANT_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantConv2d,
    nn.Linear: QuantLinear,
}
_WEIGHT_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase)
_Parts = tuple[Quantizer | None, Quantizer | None, OutputScale | None]
_MUST_AGREE = ("weight_options", "act_options", "learn_weight_scale", "recompute_inputs")
"""Settings in which a second config must agree with the first, beside bits and quantizers."""
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def register_quant_layer(source: type[nn.Module], target: type[nn.Module]) -> None:
    """Register the quantized class that replaces a layer class.

    Conversion assigns ``__class__``, so layers that a model also keeps in plain Python lists
    (Detectron2's FPN and ResNet do) are converted too.

    Args:
        source: exact class to replace. A subclass, whose forward may differ, needs its own entry.
        target: subclass of both `source` and `QuantConv2d` or `QuantLinear`.

    Raises:
        ValueError: if target is not such a subclass.
    """
    if not (issubclass(target, source) and issubclass(target, _QuantLayer)):
        raise ValueError(
            f"quantized class {target.__name__}: must derive from {source.__name__} "
            "and from QuantConv2d or QuantLinear"
        )
    _QUANT_LAYERS[source] = target


def source_class(quantized: type[nn.Module]) -> type[nn.Module]:
    """Return the layer class that a quantized class replaces.

    Raises:
        ValueError: if no class is registered for it.
    """
    for source, target in _QUANT_LAYERS.items():
        if target is quantized:
            return source
    raise ValueError(f"{quantized.__name__}: not registered; see register_quant_layer")


def quantize_model(model: nn.Module, config: QuantConfig, prefix: str = "") -> QuantReport:
    """Replace a model's convolution and linear layers by quantized ones, in place.

    Layers that are already quantized as the config says are left as they are and reported. Scales
    are set later (`set_scales`, `attach`), so weights may be loaded after this call. So are the
    signs of inputs that the config does not give: a second call reports what was found.

    Args:
        model: any module. A layer used several times, such as a detector's shared head, is one
            layer.
        config: bits, quantizers and rules.
        prefix: put before every layer name, for a part of a larger model whose names the rules use.

    Returns:
        A report of every layer that has a weight: how it was quantized, or why it was left alone.

    Raises:
        ConfigError: a rule matches no layer, quantizers need a norm or an output scale after a
            layer and there is neither, or a layer is already quantized in another way.
    """
    layers = [
        (name, layer)
        for name, layer in model.named_modules(prefix=prefix)
        if isinstance(layer, _WEIGHT_LAYERS)
    ]
    for rule in config.rules:
        if not rule.optional and not any(rule.matches(name) for name, _ in layers):
            raise ConfigError(
                "rules",
                rule.pattern,
                f"a pattern that matches a layer; layers are {_examples(layers)}",
            )
    normed = _layers_before_a_norm(model)
    # All are planned before any is converted: an error must not leave a half-converted model.
    plan = [_plan(name, layer, config, layer in normed) for name, layer in layers]
    entries: list[LayerReport] = []
    first: dict[int, str] = {}  # weight -> first layer that has it
    for (name, layer), (entry, parts) in zip(layers, plan, strict=True):
        owner = first.setdefault(id(getattr(layer, "weight", layer)), name)
        entries.append(entry if owner == name else replace(entry, tied_to=owner))
        if parts is not None and not isinstance(layer, _QuantLayer):
            _convert(layer, name, config, parts)
    counted = sum(entry.num_weights for entry in entries if not entry.tied_to)
    own_state = sum(
        p.numel() for m in model.modules() if isinstance(m, Calibrated) for p in m.parameters(False)
    )
    others = sum(p.numel() for p in model.parameters()) - counted - own_state
    return QuantReport(tuple(entries), others)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantConv2d | QuantLinear]]:
    """Yield (name, layer) for every quantized layer, each once, in the model's order."""
    for name, layer in model.named_modules():
        if isinstance(layer, QuantConv2d | QuantLinear):
            yield name, layer


def _plan(
    name: str, layer: nn.Module, config: QuantConfig, norm_follows: bool
) -> tuple[LayerReport, _Parts | None]:
    """Return a layer's report and its parts, None if it is left alone."""
    kind = type(layer).__name__
    weight = getattr(layer, "weight", None)
    size = weight.numel() if weight is not None else sum(p.numel() for p in layer.parameters(False))
    choice = config.for_layer(name)
    if isinstance(layer, _QuantLayer):
        _check_same(name, layer, choice, config)
        parts: _Parts = (layer.weight_quantizer, layer.input_quantizer, layer.output_scale)
    else:
        reason = ""
        if choice.skip is not None:
            reason = f"rule {choice.skip!r}"
        elif type(layer) not in _QUANT_LAYERS:
            reason = f"no quantized class for {kind}; see register_quant_layer"
        elif choice.weight_bits == choice.act_bits == FULL_PRECISION:
            reason = "32 bits asked for"
        if reason:
            return LayerReport(name, kind, size, reason=reason), None
        scaled = _wants_output_scale(name, choice, config, norm_follows)
        quantizers = _quantizers(name, layer, choice, config)
        parts = (*quantizers, OutputScale() if scaled else None)
    weight_quantizer, input_quantizer, output_scale = parts
    report = LayerReport(
        name,
        kind,
        size,
        FULL_PRECISION if weight_quantizer is None else weight_quantizer.bits,
        FULL_PRECISION if input_quantizer is None else input_quantizer.bits,
        *_sign(input_quantizer),
        output_scale is not None,
    )
    return report, parts


def _sign(quantizer: Quantizer | None) -> tuple[bool | None, bool]:
    """Return whether an input is signed (None: still to be found), and whether that was given."""
    if quantizer is None:
        return False, True
    return None if quantizer.sign_is_open else quantizer.signed, quantizer.sign_options is None


def _check_same(name: str, layer: _QuantLayer, choice: LayerChoice, config: QuantConfig) -> None:
    """Check that a quantized layer is quantized as the config says."""
    undo = f"{name!r} is already quantized; dequantize_layers undoes it"
    check("rules", choice.skip, choice.skip is None, f"without skip where {undo}")
    for part, quantizer, bits in (
        ("weight", layer.weight_quantizer, choice.weight_bits),
        ("act", layer.input_quantizer, choice.act_bits),
    ):
        present = FULL_PRECISION if quantizer is None else quantizer.bits
        check(f"{part}_bits", bits, bits == present, f"{present}, with which {undo}")
        if quantizer is not None:
            wanted = getattr(config, f"{part}_quantizer")
            same = type(quantizer) is QUANTIZERS[wanted]
            kind = type(quantizer).__module__.rpartition(".")[2]
            check(f"{part}_quantizer", wanted, same, f"{kind!r}, with which {undo}")
    for key in _MUST_AGREE if layer.made_with is not None else ():
        wanted, present = getattr(config, key), getattr(layer.made_with, key)
        check(key, wanted, wanted == present, f"{present!r}, with which {undo}")
    if layer.input_quantizer is not None and choice.signed_input is not None:
        present = layer.input_quantizer.signed
        same = choice.signed_input == present
        check("signed_input", choice.signed_input, same, f"{present}, with which {undo}")
    if choice.output_scale is not None:
        present = layer.output_scale is not None
        same = choice.output_scale == present
        check("output_scale", choice.output_scale, same, f"{present}, with which {undo}")


def _specs(choice: LayerChoice, layer: nn.Module | None = None) -> tuple[Spec | None, Spec | None]:
    """Return the specifications of a layer's weight quantizer and input quantizer."""
    weight = getattr(layer, "weight", None)
    channels = 1 if weight is None else weight.shape[0]
    quantized = (choice.weight_bits != FULL_PRECISION, choice.act_bits != FULL_PRECISION)
    return (
        Spec(choice.weight_bits, True, "weight", channels) if quantized[0] else None,
        Spec(choice.act_bits, bool(choice.signed_input), "input") if quantized[1] else None,
    )


def _wants_output_scale(
    name: str, choice: LayerChoice, config: QuantConfig, norm_follows: bool
) -> bool:
    if choice.output_scale is not None:  # the author of a rule knows what follows the layer
        return choice.output_scale
    names = (config.weight_quantizer, config.act_quantizer)
    needed = not norm_follows and any(
        spec is not None and QUANTIZERS[quantizer].needs_scale_after(spec)
        for quantizer, spec in zip(names, _specs(choice), strict=True)
    )
    policy = config.output_scale
    allowed = (
        f"'auto' or 'always' for layer {name!r}: no trainable norm is found to follow it, so "
        "nothing absorbs the scale of its fixed grid; a rule can say that it needs none"
    )
    check("output_scale", policy, policy != "never" or not needed, allowed)
    return policy == "always" or needed


def _quantizers(
    name: str, layer: nn.Module, choice: LayerChoice, config: QuantConfig
) -> tuple[Quantizer | None, Quantizer | None]:
    """Return a layer's weight and input quantizer."""
    made: list[Quantizer | None] = []
    for part, spec, options in zip(
        ("weight", "act"),
        _specs(choice, layer),
        ({"learn_scale": config.learn_weight_scale, **config.weight_options}, config.act_options),
        strict=True,
    ):
        kind = getattr(config, f"{part}_quantizer")
        try:
            made.append(None if spec is None else QUANTIZERS.build(kind, spec, **options))
        except ConfigError as error:
            if error.key == "bits":
                allowed = f"{error.allowed}, in layer {name!r}"
                raise ConfigError(f"{part}_bits", error.value, allowed) from None
            allowed = f"another one for layer {name!r} ({error})"
            raise ConfigError(f"{part}_quantizer", kind, allowed) from None
    weight_quantizer, input_quantizer = made
    if input_quantizer is not None and choice.signed_input is None:
        input_quantizer.follow_sign(config.act_options)
    return weight_quantizer, input_quantizer


def _convert(layer: nn.Module, name: str, config: QuantConfig, parts: _Parts) -> None:
    layer.__class__ = _QUANT_LAYERS[type(layer)]
    assert isinstance(layer, _QuantLayer)
    layer.set_parts(*parts)
    for child in ("weight_quantizer", "input_quantizer", "output_scale"):
        part = getattr(layer, child)
        if part is not None:
            part.label = f"{name}.{child}"
    layer.recompute_input, layer.made_with = config.recompute_inputs, config
    layer.train(layer.training)  # the new children follow the layer's mode
    layer.to(layer.weight.device)


def _layers_before_a_norm(model: nn.Module) -> set[nn.Module]:
    """Return layers with a trainable norm as their ``norm`` child or next in a Sequential."""
    found: set[nn.Module] = set()
    for module in model.modules():
        norm = getattr(module, "norm", None)
        if isinstance(norm, nn.Module) and _is_trainable_norm(norm):
            found.add(module)
        if isinstance(module, nn.Sequential):
            children = list(module)
            found.update(
                first
                for first, second in zip(children, children[1:], strict=False)
                if not isinstance(second, _WEIGHT_LAYERS) and _is_trainable_norm(second)
            )
    return found


def _is_trainable_norm(module: nn.Module) -> bool:
    """Return whether a module is a trainable norm, or consists of norms (one per FPN level)."""
    parts = list(module.modules())
    return (
        any(isinstance(part, _NORMS) for part in parts)
        and not any(isinstance(part, _WEIGHT_LAYERS) for part in parts)
        and any(p.requires_grad for p in module.parameters())
    )


def _examples(layers: Sequence[tuple[str, nn.Module]]) -> str:
    names = [name for name, _ in layers]
    return ", ".join(names[:4]) + (f", ... ({len(names)} in all)" if len(names) > 4 else "")
