"""The classification companion: models and data on the same core. Never imports detectron2."""

from tr_det.classification.digits import DigitImages, load_digit_images
from tr_det.classification.resnet_cifar import ResNetCIFAR

__all__ = ["DigitImages", "ResNetCIFAR", "load_digit_images"]
