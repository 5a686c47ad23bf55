"""The classification companion: models and data on the same core. Never imports detectron2."""

from tr_det.classification.models.resnet_cifar import ResNetCIFAR

__all__ = ["ResNetCIFAR"]
