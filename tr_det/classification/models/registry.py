"""Networks by name, with the quantization rules of each.

Definitions come from torchvision and timm where they have them. First and last layers are not
quantized (S4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tr_det.classification.config.keys import LIBRARY
from tr_det.classification.models.published import load_published
from tr_det.classification.models.reactnet import ReActNet18
from tr_det.classification.models.resnet_cifar import ResNetCIFAR
from tr_det.core import ConfigError, QuantConfig, QuantReport, QuantRule, quantize_model
from tr_det.core.errors import check, check_among
from tr_det.runtime.timm_models import timm_library

IMAGENET_CLASSES = 1000
Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class Network:
    """A network and its rules; globs over layer names.

    Attributes:
        build: called with ``num_classes``, ``in_channels``, ``pretrained`` and options.
        full_precision: layers that are not quantized: the first one, those that the network's
            authors keep, and as the last entry the last one.
        normed: layers followed by a batch norm that `quantize_model` cannot find.
        classes: of the published weights.
    """

    build: Builder
    full_precision: tuple[str, ...]
    normed: tuple[str, ...] = ()
    classes: int = IMAGENET_CLASSES

    def rules(self) -> tuple[QuantRule, ...]:
        """Return the rules for `quantize_model`."""
        return (
            *(QuantRule(pattern=p, output_scale=False) for p in self.normed),
            *(QuantRule(pattern=p, skip=True) for p in self.full_precision),
        )


def build_model(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    new_last_layer: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a network in full precision.

    Args:
        name: one of `MODELS`.
        num_classes: classes, >= 2.
        in_channels: channels of the images.
        pretrained: load the weights that torchvision, timm or the network's authors publish.
        new_last_layer: replace the last layer by a random one for ``num_classes``.
        **options: the builder's own, e.g. ``depth=20``.

    Raises:
        ConfigError: with the key ``name``, ``options`` or ``weights``.
    """
    network = _network(name)
    replaced = pretrained and new_last_layer
    try:
        model = network.build(
            num_classes=network.classes if replaced else num_classes,
            in_channels=in_channels,
            pretrained=pretrained,
            **options,
        )
    except OSError as error:
        if not pretrained:
            raise
        allowed = f"a checkpoint, as the published ones cannot be fetched: {error}"
        raise ConfigError("weights", LIBRARY, allowed) from None
    except (TypeError, ArithmeticError, AssertionError, LookupError, RuntimeError) as error:
        if not options:
            raise
        raise ConfigError("options", options, f"arguments of {name}: {error}") from None
    if replaced:
        last = network.full_precision[-1]
        features: Any = model.get_submodule(last).in_features
        model.set_submodule(last, nn.Linear(features, num_classes))
    return model


def quantize_network(model: nn.Module, name: str, config: QuantConfig) -> QuantReport:
    """Quantize a network of `build_model` in place, by its rules.

    Raises:
        ConfigError: a setting that this network does not allow, e.g. an input quantizer without
            negative levels.
    """
    return quantize_model(model, replace(config, rules=_network(name).rules()))


def _network(name: str) -> Network:
    check_among("name", name, MODELS)
    return MODELS[name]


def _resnet_cifar(
    num_classes: int, in_channels: int, pretrained: bool, **options: Any
) -> nn.Module:
    model = ResNetCIFAR(num_classes=num_classes, in_channels=in_channels, **options)
    if pretrained:
        load_published(model)
    return model


def _reactnet18(num_classes: int, in_channels: int, pretrained: bool, **options: Any) -> nn.Module:
    if pretrained:
        raise ConfigError("weights", LIBRARY, "a checkpoint: nobody publishes this network's")
    return ReActNet18(num_classes=num_classes, in_channels=in_channels, **options)


def _torchvision(name: str) -> Builder:
    def build(num_classes: int, in_channels: int, pretrained: bool, **options: Any) -> nn.Module:
        from torchvision import models

        check("name", name, in_channels == 3, "resnet_cifar or reactnet18 for grey images")
        _check_classes(num_classes, pretrained)
        # V1: what the papers of the time started from, ResNet-18 69.8 %, MobileNetV2 71.9 %.
        weights = "IMAGENET1K_V1" if pretrained else None
        return models.get_model(name, weights=weights, num_classes=num_classes, **options)

    return build


def _timm(name: str) -> Builder:
    def build(num_classes: int, in_channels: int, pretrained: bool, **options: Any) -> nn.Module:
        timm = timm_library("name", name)
        _check_classes(num_classes, pretrained)
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **options
        )
        return model

    return build


def _check_classes(num_classes: int, pretrained: bool) -> None:
    fits = not pretrained or num_classes == IMAGENET_CLASSES
    allowed = (
        f"a checkpoint, or for model.weights with model.new_last_layer true: the published ones "
        f"have ImageNet's {IMAGENET_CLASSES} classes, the data has {num_classes}"
    )
    check("weights", LIBRARY, fits, allowed)


_BLOCKS = tuple(f"layer{stage}.*" for stage in range(1, 5))
_RESNET: dict[str, Any] = {"full_precision": ("conv1", "fc"), "normed": _BLOCKS}
_MOBILENET_V2: dict[str, Any] = {"full_precision": ("features.0.0", "classifier.1")}
_MOBILENET_V3_SMALL: dict[str, Any] = {"full_precision": ("features.0.0", "classifier.3")}
_EFFICIENTNET_LITE0: dict[str, Any] = {
    "full_precision": ("conv_stem", "classifier"),
    "normed": ("blocks.*", "conv_head"),
}
_DEIT: dict[str, Any] = {"full_precision": ("patch_embed.proj", "head")}

MODELS: dict[str, Network] = {
    "resnet_cifar": Network(_resnet_cifar, ("conv1", "fc"), normed=("blocks.*",), classes=10),
    "reactnet18": Network(
        _reactnet18,
        ("conv1", "units.*.shortcut.1", "fc"),
        normed=("units.*.conv",),
    ),
    "resnet18": Network(_torchvision("resnet18"), **_RESNET),
    "resnet34": Network(_torchvision("resnet34"), **_RESNET),
    "mobilenet_v2": Network(_torchvision("mobilenet_v2"), **_MOBILENET_V2),
    "mobilenet_v3_small": Network(_torchvision("mobilenet_v3_small"), **_MOBILENET_V3_SMALL),
    "efficientnet_lite0": Network(_timm("efficientnet_lite0"), **_EFFICIENTNET_LITE0),
    "deit_tiny": Network(_timm("deit_tiny_patch16_224"), **_DEIT),
    "deit_small": Network(_timm("deit_small_patch16_224"), **_DEIT),
}
