"""Conversion of a model in place, by name rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from tr_det.core.nn.config import FULL_PRECISION, LayerChoice, QuantConfig
from tr_det.core.nn.layers import OutputScale, QuantConv2d, QuantLinear, _QuantLayer
from tr_det.core.nn.report import LayerReport, QuantReport
from tr_det.core.quantizers import Quantizer, build_quantizer

_QUANT_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantConv2d,
    nn.Linear: QuantLinear,
}
_WEIGHT_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase)
_Plan = list[tuple[str, nn.Module, LayerReport]]
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def register_quant_layer(source: type[nn.Module], target: type[nn.Module]) -> None:
    """Say which quantized class replaces a layer class.

    The swap is by ``__class__``, so that layers which a model also keeps in plain Python lists
    (Detectron2's FPN and ResNet do) are converted too.

    Args:
        source: exact class to replace; subclasses need their own entry, because their forward may
            differ.
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

    Layers that are quantized already stay as they are and are reported as such. Scales are set at
    the first forward in training mode, so weights may be loaded after this call.

    Args:
        model: any module. A layer used several times, such as a detector's shared head, is one
            layer.
        config: bits, quantizers and rules.
        prefix: put before every layer name, for a module that is a part of the model that the
            rules speak of.

    Returns:
        A report of every layer that has a weight: how it was quantized, or why it was left alone.

    Raises:
        ValueError: a rule that matches no layer, or a fixed-grid layer that neither a norm nor an
            output scale follows.
    """
    layers = [
        (name, layer)
        for name, layer in model.named_modules(prefix=prefix)
        if isinstance(layer, _WEIGHT_LAYERS)
    ]
    for rule in config.rules:
        if not rule.optional and not any(rule.matches(name) for name, _ in layers):
            raise ValueError(
                f"rule pattern={rule.pattern!r}: matches no layer; layers are {_examples(layers)}"
            )
    normed = _layers_before_a_norm(model)
    # Plan first, convert after: an error must not leave a model half converted.
    plan: _Plan = [
        (name, layer, _plan(name, layer, config, layer in normed)) for name, layer in layers
    ]
    for name, layer, entry in plan:
        if not entry.reason and not isinstance(layer, _QuantLayer):
            _convert(layer, name, config, entry)
    plan = _with_ties(plan)
    sizes = {id(getattr(layer, "weight", layer)): entry.num_weights for _, layer, entry in plan}
    counted = sum(sizes.values())  # a weight that layers share counts once
    own_state = sum(
        p.numel()
        for m in model.modules()
        if isinstance(m, Quantizer | OutputScale)
        for p in m.parameters(False)
    )
    others = sum(p.numel() for p in model.parameters()) - counted - own_state
    return QuantReport(tuple(entry for _, _, entry in plan), others)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantConv2d | QuantLinear]]:
    """Yield (name, layer) for every quantized layer, each once, in the model's order."""
    for name, layer in model.named_modules():
        if isinstance(layer, QuantConv2d | QuantLinear):
            yield name, layer


def _plan(name: str, layer: nn.Module, config: QuantConfig, norm_follows: bool) -> LayerReport:
    kind = type(layer).__name__
    weight = getattr(layer, "weight", None)
    size = weight.numel() if weight is not None else sum(p.numel() for p in layer.parameters(False))
    if isinstance(layer, _QuantLayer):
        weight_q, input_q = layer.weight_quantizer, layer.input_quantizer
        return LayerReport(
            name,
            kind,
            size,
            FULL_PRECISION if weight_q is None else weight_q.bits,
            FULL_PRECISION if input_q is None else input_q.bits,
            input_q is not None and input_q.signed,
            layer.output_scale is not None,
        )
    choice = config.for_layer(name)
    if choice.skip is not None:
        return LayerReport(name, kind, size, reason=f"rule {choice.skip!r}")
    if type(layer) not in _QUANT_LAYERS:
        return LayerReport(
            name, kind, size, reason=f"no quantized class for {kind}; see register_quant_layer"
        )
    if choice.weight_bits == choice.act_bits == FULL_PRECISION:
        return LayerReport(name, kind, size, reason="32 bits asked for")
    return LayerReport(
        name,
        kind,
        size,
        choice.weight_bits,
        choice.act_bits,
        choice.signed_input,
        _wants_output_scale(name, choice, config, norm_follows),
    )


def _wants_output_scale(
    name: str, choice: LayerChoice, config: QuantConfig, norm_follows: bool
) -> bool:
    if choice.output_scale is not None:  # a rule names the layer: its author knows what follows
        return choice.output_scale
    if config.output_scale == "never" and not norm_follows:
        raise ValueError(
            f"output_scale='never' for layer {name!r}: no trainable norm is seen to follow "
            "it, so nothing could absorb the scale of the fixed grid; use 'auto', or say by a "
            "rule that the layer needs none"
        )
    return config.output_scale == "always" or not norm_follows


def _convert(layer: nn.Module, name: str, config: QuantConfig, entry: LayerReport) -> None:
    weight_quantizer = input_quantizer = None
    if entry.weight_bits != FULL_PRECISION:
        weight_quantizer = build_quantizer(
            config.weight_quantizer,
            entry.weight_bits,
            signed=True,
            learn_scale=config.learn_weight_scale,
        )
        weight_quantizer.label = f"{name}.weight_quantizer"
    if entry.act_bits != FULL_PRECISION:
        input_quantizer = build_quantizer(
            config.act_quantizer, entry.act_bits, signed=entry.signed_input
        )
        input_quantizer.label = f"{name}.input_quantizer"
    output_scale = OutputScale() if entry.output_scale else None
    if output_scale is not None:
        output_scale.label = f"{name}.output_scale"
    layer.__class__ = _QUANT_LAYERS[type(layer)]
    assert isinstance(layer, _QuantLayer)
    layer.attach(weight_quantizer, input_quantizer, output_scale)
    layer.recompute_input = config.recompute_inputs
    layer.train(layer.training)  # the new children follow the layer's mode
    layer.to(layer.weight.device)


def _layers_before_a_norm(model: nn.Module) -> set[nn.Module]:
    """Return layers followed by a trainable norm: their ``norm`` child, or next in a Sequential."""
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
    """Return whether a module is a trainable norm, or made of norms (one per FPN level)."""
    parts = list(module.modules())
    return (
        any(isinstance(part, _NORMS) for part in parts)
        and not any(isinstance(part, _WEIGHT_LAYERS) for part in parts)
        and any(p.requires_grad for p in module.parameters())
    )


def _with_ties(plan: _Plan) -> _Plan:
    """Return the plan with the layers marked that have an earlier one's weight."""
    first: dict[int, str] = {}
    marked: _Plan = []
    for name, layer, entry in plan:
        owner = first.setdefault(id(getattr(layer, "weight", layer)), name)
        marked.append((name, layer, entry if owner == name else replace(entry, tied_to=owner)))
    return marked


def _examples(layers: Sequence[tuple[str, nn.Module]]) -> str:
    names = [name for name, _ in layers]
    return ", ".join(names[:4]) + (f", ... ({len(names)} in all)" if len(names) > 4 else "")
