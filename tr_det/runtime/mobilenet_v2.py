"""Names of layers of torchvision's MobileNetV2, in classifiers and in detectors' backbones."""

SIGNED_INPUTS = (
    *(f"features.{block}.conv.0.0" for block in range(2, 18)),
    "features.18.0",
)
"""Layers that read a linear bottleneck, whose values can be negative. The first block has none."""
